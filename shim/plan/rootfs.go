package plan

import (
	"fmt"
	"strconv"

	"github.com/containerd/containerd/api/types"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/vmm"
)

// Rootfs is a container's root file system: images that are stacked in the guest.
type Rootfs struct {
	// Layers are read-only, lowest first.
	Layers []Image
	// Writable takes the changes, in its directory api.UpperDir; nil for a
	// read-only root file system.
	Writable *Image
}

// Image is a file of the host that holds a file system.
type Image struct {
	// Path is the file's absolute path.
	Path string
	// FSType is "ext4" or "erofs".
	FSType string
	// Directory holds the tree within the file system; empty is its root.
	Directory string
}

// FindRootfs finds out what the rootfs mounts are made of that containerd hands
// over: a bind of a snapshot of applevm-snapshotter, behind which lies a manifest,
// or images with an overlay of them (see images).
func FindRootfs(rootfs []*types.Mount) (Rootfs, error) {
	const use = "use the applevm snapshotter (for instance: ctr run --snapshotter applevm)"
	if len(rootfs) == 0 {
		return Rootfs{}, invalid("the container has no root filesystem: %s", use)
	}
	if r, ok, err := images(rootfs); ok || err != nil {
		return r, err
	}
	if len(rootfs) > 1 {
		return Rootfs{}, unsupported("a root filesystem of %d mounts (the last of type %q) is not implemented: %s",
			len(rootfs), rootfs[len(rootfs)-1].GetType(), use)
	}
	if rootfs[0].GetType() != "bind" {
		return Rootfs{}, unsupported("a root filesystem of mount type %q is not implemented: %s", rootfs[0].GetType(), use)
	}
	m, err := manifest.Find(rootfs[0].GetSource())
	if isNoManifest(err) {
		return Rootfs{}, unsupported("a root filesystem in the host directory %s is not implemented: %s", rootfs[0].GetSource(), use)
	}
	if err != nil {
		return Rootfs{}, fmt.Errorf("root filesystem: %w", err)
	}
	return snapshot(m), nil
}

// snapshot is the root file system that a manifest describes.
func snapshot(m manifest.Manifest) Rootfs {
	var r Rootfs
	for _, l := range m.Layers {
		r.Layers = append(r.Layers, Image{Path: l.Path, FSType: l.FSType, Directory: manifest.LayerRoot})
	}
	if w := m.Writable; w != nil {
		r.Writable = &Image{Path: w.Path, FSType: w.FSType}
	}
	return r
}

// root gives each image a disk, and the guest the names under which it finds
// them. No path of the host goes into the latter.
func root(in Rootfs) (*guestv1.Rootfs, []vmm.Disk, error) {
	if len(in.Layers) == 0 && in.Writable == nil {
		return nil, nil, invalid("the root file system has no image")
	}
	r := &guestv1.Rootfs{}
	var disks []vmm.Disk
	for i, l := range in.Layers {
		id := "l" + strconv.Itoa(i)
		disks = append(disks, vmm.Disk{ID: id, Path: l.Path, ReadOnly: true})
		r.Lower = append(r.Lower, &guestv1.Tree{Disk: id, FsType: l.FSType, Directory: l.Directory})
	}
	if w := in.Writable; w != nil {
		disks = append(disks, vmm.Disk{ID: "w", Path: w.Path})
		r.Writable = &guestv1.Tree{Disk: "w", FsType: w.FSType}
	}
	return r, disks, nil
}
