package main

import (
	"testing"

	"github.com/subpod/subpod/pkg/api"
)

// TestUnusedVolumes: what a container has is not pruned, whatever the filters say.
func TestUnusedVolumes(t *testing.T) {
	list := []api.Volume{{Name: "used", Containers: []string{"c"}}, {Name: "unused"}}
	for filter, want := range map[string]int{"driver=local": 1, "dangling=true": 1, "dangling=false": 0, "name=^used$": 0} {
		got, err := unusedVolumes(list, []string{filter})
		if err != nil || len(got) != want || want == 1 && got[0].Name != "unused" {
			t.Errorf("%s: %v, %v", filter, got, err)
		}
	}
	if _, err := unusedVolumes(list, []string{"dangling"}); err == nil {
		t.Error("a filter without a value is taken")
	}
}
