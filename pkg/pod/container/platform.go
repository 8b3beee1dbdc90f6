package container

import (
	"fmt"
	"runtime"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/storage"
)

// ErrForeignImage says that this machine's processor does not run the image's programs, and
// that nobody has said that an emulator does (api.ContainerOptions.Emulated).
var ErrForeignImage = errclass.New(errdefs.ErrFailedPrecondition, "the image is made for another architecture")

func checkPlatform(plan Plan, i storage.Image) error {
	if i.RunsHere() || plan.options != nil && plan.options.Emulated {
		return nil
	}
	return fmt.Errorf("%w: image %s is made for %s/%s, this machine is %s/%s", ErrForeignImage, plan.Config.Image.Image, i.OS, i.Architecture, runtime.GOOS, runtime.GOARCH)
}
