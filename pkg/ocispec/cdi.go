package ocispec

import (
	"slices"

	"tags.cncf.io/container-device-interface/pkg/cdi"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"
)

// cdi injects the devices of Container.CDIDevices, and of its annotations cdi.k8s.io/…, by
// their CDI specifications: environment, mounts, hooks, and device nodes, which are bound
// like all others.
func (b *builder) cdi() error {
	names, err := b.cdiNames()
	if err != nil {
		return err
	}
	return b.injectCDI(names)
}

// cdiNames returns the names of the CDI devices that are asked for, each once.
func (b *builder) cdiNames() ([]string, error) {
	_, annotated, err := cdi.ParseAnnotations(b.Container.Annotations)
	if err != nil {
		return nil, invalid("annotations %s: %w", cdi.AnnotationPrefix, err)
	}
	slices.Sort(annotated) // they come out of a map
	var names []string
	for _, d := range b.Container.CDIDevices {
		names = append(names, d.GetName())
	}
	var out []string
	for _, n := range slices.Concat(names, annotated) {
		if n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

func (b *builder) injectCDI(names []string) error {
	if len(names) == 0 {
		return nil
	}
	if len(b.CDISpecDirs) == 0 {
		return invalid("CDI devices %v are asked for, but no CDI specification directory is configured", names)
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(b.CDISpecDirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return invalid("CDI: %w", err)
	}
	if _, err := cache.InjectDevices(b.spec, names...); err != nil {
		return invalid("CDI: %w", err)
	}
	hostPaths := map[string]string{}
	for _, name := range names {
		d := cache.GetDevice(name)
		nodes := slices.Concat(d.GetSpec().ContainerEdits.DeviceNodes, d.ContainerEdits.DeviceNodes)
		addHostPaths(hostPaths, nodes)
	}
	return b.bindInjected(hostPaths)
}

func addHostPaths(into map[string]string, nodes []*cdispecs.DeviceNode) {
	for _, n := range nodes {
		if n.HostPath != "" {
			into[n.Path] = n.HostPath
		}
	}
}

// bindInjected turns the device nodes that an injection has put into the
// specification into bind mounts.
func (b *builder) bindInjected(hostPaths map[string]string) error {
	for _, d := range b.spec.Linux.Devices {
		src := d.Path
		if host, ok := hostPaths[d.Path]; ok {
			src = host
		}
		dst, err := destination(d.Path)
		if err != nil {
			return err
		}
		if err := b.device(src, dst); err != nil {
			return err
		}
	}
	b.spec.Linux.Devices = nil
	if r := b.spec.Linux.Resources; r != nil {
		r.Devices = nil
	}
	for i := range b.spec.Mounts {
		m := &b.spec.Mounts[i]
		if m.Type == "" {
			m.Type = typeBind
		}
	}
	return nil
}
