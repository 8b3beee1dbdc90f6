package main

import (
	"debug/buildinfo"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// makeSBOM writes what the programs are linked from, as they themselves tell (Go's build
// information), in CycloneDX's JSON.
func makeSBOM(j job) error {
	programs, err := filepath.Glob(filepath.Join(j.stage, "bin", "*"))
	if err != nil || len(programs) == 0 {
		return fmt.Errorf("no programs in %s/bin: %w", j.stage, err)
	}
	main := component("pkg:golang/github.com/subpod/subpod@v"+j.version.full, "github.com/subpod/subpod", j.version.full)
	main.Type = cdx.ComponentTypeApplication
	modules, edges := map[string]cdx.Component{}, []cdx.Dependency{}
	var files []cdx.Component
	for _, path := range programs {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read the build information of %s: %w", path, err)
		}
		sum, err := digest(path)
		if err != nil {
			return err
		}
		name := filepath.Base(path)
		files = append(files, cdx.Component{BOMRef: "file:" + name, Type: cdx.ComponentTypeFile, Name: name, Version: j.version.full,
			Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: fmt.Sprintf("%x", sum)}}})
		std := component("pkg:golang/std@"+info.GoVersion, "std", info.GoVersion)
		modules[std.BOMRef] = std
		uses := []string{std.BOMRef}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			if m.Version == "" {
				m.Path, m.Version = "github.com/subpod/subpod/"+filepath.Clean(m.Path), "v"+j.version.full // a directory of the tree
			}
			c := component("pkg:golang/"+m.Path+"@"+m.Version, m.Path, m.Version)
			modules[c.BOMRef] = c
			uses = append(uses, c.BOMRef)
		}
		slices.Sort(uses)
		edges = append(edges, cdx.Dependency{Ref: "file:" + name, Dependencies: &uses})
	}
	for _, ref := range slices.Sorted(maps.Keys(modules)) {
		files = append(files, modules[ref])
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: j.time.Format(time.RFC3339), Component: &main}
	bom.Components, bom.Dependencies = &files, &edges
	return j.writeBOM(bom)
}

func component(purl, name, version string) cdx.Component {
	purl = strings.ReplaceAll(purl, "+", "%2B")
	return cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: name, Version: version, PackageURL: purl}
}

func (j job) writeBOM(bom *cdx.BOM) error {
	name := j.path(j.name() + ".cdx.json")
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := cdx.NewBOMEncoder(f, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	fmt.Println(name)
	return f.Close()
}
