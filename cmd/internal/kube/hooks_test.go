package kube

import "testing"

// TestOtherHooks: what an installation runs is read, also where it is for other hooks, too.
func TestOtherHooks(t *testing.T) {
	for hooks, want := range map[string]string{
		"": "", "pre-install": "", "post-install,post-upgrade": "", "pre-upgrade, pre-install": "",
		"test": "test", "test-success": "test-success", "pre-delete,post-delete": "pre-delete,post-delete",
	} {
		if got := otherHooks(map[string]string{"helm.sh/hook": hooks}); got != want {
			t.Errorf("%q: %q, want %q", hooks, got, want)
		}
	}
	if got := otherHooks(nil); got != "" {
		t.Errorf("without annotations: %q", got)
	}
}
