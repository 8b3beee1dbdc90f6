package storage

import "context"

type Images struct{ *Store }
type Rootfs struct{ *Store }

func (s Images) Get(ctx context.Context, ref string) (Image, error)   { return s.Image(ctx, ref) }
func (s Rootfs) Create(ctx context.Context, r RootfsSpec) (Mounted, error) { return s.CreateRootfs(ctx, r) }
func (s Rootfs) Mount(ctx context.Context, id string) (Mounted, error) { return s.MountRootfs(ctx, id) }
func (s Rootfs) Unmount(ctx context.Context, id string) error         { return s.UnmountRootfs(ctx, id) }
func (s Rootfs) Delete(ctx context.Context, id string) error          { return s.DeleteRootfs(ctx, id) }
func (s Rootfs) IDs(ctx context.Context) ([]string, error)            { return s.RootfsIDs(ctx) }
