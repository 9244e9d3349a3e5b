package plan

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/vmm"
)

// Rootfs is a container's root file system: images that are stacked in the guest, or a
// directory of the host. The zero value is the directory that the spec names.
type Rootfs struct {
	// Layers are read-only, lowest first.
	Layers []Image
	// Writable takes the changes, in its directory api.UpperDir; nil for a
	// read-only root file system.
	Writable *Image
	// Directory, if set, is all there is.
	Directory *Directory
}

// Directory is a directory of the host that the machine shares.
type Directory struct {
	// Path is the directory's absolute path.
	Path string
	// Mount, if set, is an overlay that makes the directory's content. It is to be
	// mounted at the bundle's RootDir, and Path is empty.
	Mount *types.Mount
	// ReadOnly directories cannot be changed by the machine.
	ReadOnly bool
}

// RootDir is the directory of a bundle that containerd makes for the root file
// system; what is mounted there it unmounts when the bundle goes.
const RootDir = "rootfs"

// rootTag names the share that is the root file system.
const rootTag = "root"

// Image is a file of the host that holds a file system.
type Image struct {
	// Path is the file's absolute path.
	Path string
	// FSType is "ext4" or "erofs".
	FSType string
	// Directory holds the tree within the file system; empty is its root.
	Directory string
}

// use says what always works.
const use = "use the applevm snapshotter (for instance: ctr run --snapshotter applevm)"

// FindRootfs finds out what the rootfs mounts are made of that containerd hands
// over: a bind of a snapshot of applevm-snapshotter, behind which lies a manifest;
// images with an overlay of them (see images); a bind of a directory, or an overlay of
// directories; or none, where the spec names a directory.
func FindRootfs(rootfs []*types.Mount) (Rootfs, error) {
	if len(rootfs) == 0 {
		return Rootfs{}, nil
	}
	if r, ok, err := images(rootfs); ok || err != nil {
		return r, err
	}
	if len(rootfs) > 1 {
		return Rootfs{}, unsupported("a root filesystem of %d mounts (the last of type %q) is not implemented: %s",
			len(rootfs), rootfs[len(rootfs)-1].GetType(), use)
	}
	switch m := rootfs[0]; m.GetType() {
	case "bind":
		return bound(m)
	case "overlay":
		return Rootfs{Directory: &Directory{Mount: m, ReadOnly: slices.Contains(m.GetOptions(), "ro")}}, nil
	}
	return Rootfs{}, unsupported("a root filesystem of mount type %q is not implemented: %s", rootfs[0].GetType(), use)
}

// bound is the root file system that a bind stands for: what a manifest beside it
// says, else the directory itself.
func bound(m *types.Mount) (Rootfs, error) {
	found, err := manifest.Find(m.GetSource())
	if err == nil {
		return snapshot(found), nil
	}
	if !isNoManifest(err) {
		return Rootfs{}, fmt.Errorf("root filesystem: %w", err)
	}
	if !filepath.IsAbs(m.GetSource()) {
		return Rootfs{}, invalid("the root filesystem's directory %q is not an absolute path", m.GetSource())
	}
	d := &Directory{Path: m.GetSource()}
	for _, o := range m.GetOptions() {
		switch o {
		case "ro":
			d.ReadOnly = true
		case "rw", "bind", "rbind":
		default: // for instance uidmap=, which is for the host's mount(2)
			return Rootfs{}, unsupported("the option %q of the root filesystem's directory %s is not implemented: %s", o, d.Path, use)
		}
	}
	return Rootfs{Directory: d}, nil
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

// directory finds out which directory of the host is the root file system, if it is
// one: named by a mount, by an overlay that is yet to be mounted, or by the spec.
func directory(in Input, root *specs.Root) (*Directory, error) {
	d := in.Rootfs.Directory
	switch {
	case len(in.Rootfs.Layers) > 0 || in.Rootfs.Writable != nil:
		return nil, nil
	case d != nil && d.Mount != nil:
		return &Directory{Path: filepath.Join(in.Bundle, RootDir), Mount: d.Mount, ReadOnly: d.ReadOnly}, nil
	case d == nil && (root == nil || root.Path == ""):
		return nil, invalid("the container has no root filesystem: %s", use)
	case d == nil:
		d = &Directory{Path: root.Path}
		if !filepath.IsAbs(d.Path) {
			d.Path = filepath.Join(in.Bundle, d.Path)
		}
	}
	st, err := in.Stat(d.Path)
	if err != nil {
		return nil, invalid("the container's root filesystem: %w", err)
	}
	if !st.IsDir() {
		return nil, invalid("the container's root filesystem %s is not a directory", d.Path)
	}
	return d, nil
}

// root gives each image a disk, or the directory a share, and the guest the names
// under which it finds them. No path of the host goes into the latter.
func (p *Plan) root(in Input, spec *specs.Root) (*guestv1.Rootfs, error) {
	d, err := directory(in, spec)
	if err != nil {
		return nil, err
	}
	if d != nil {
		p.RootMount = d.Mount
		p.Machine.Shares = append(p.Machine.Shares, vmm.Share{Tag: rootTag, Path: d.Path, ReadOnly: d.ReadOnly})
		return &guestv1.Rootfs{Share: &guestv1.Share{Tag: rootTag, ReadOnly: d.ReadOnly}}, nil
	}
	rootfs, list := disks(in.Rootfs)
	p.Machine.Disks = list
	return rootfs, nil
}

// disks gives each image a disk.
func disks(in Rootfs) (*guestv1.Rootfs, []vmm.Disk) {
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
	return r, disks
}
