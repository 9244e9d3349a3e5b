package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/guest/api"
	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// maxLayers is the most read-only trees that a root file system may have: an
// image has at most 127 layers (containerd, Docker).
const maxLayers = 127

// workDir is overlayfs's own directory in a writable tree, beside api.UpperDir.
const workDir = "work"

// rootfs is a container's root file system, put together from trees on disks, or a
// directory that the host shares.
type rootfs struct {
	path string

	disks   *disks
	serials []string // acquired
	lowers  string   // directory of links, if made
	mounted bool     // path is an overlay or a share
	shared  bool     // path is a share
	changes string   // the mount point of the disk that takes changes, if any
	mapped  *mapped  // the trees' mounts in a user namespace, if any
}

// mountRootfs mounts what r asks for. Links to the lower trees go to lowers and
// an overlay goes to target; neither exists yet. The result's path may be
// elsewhere: a single read-only tree is used where it is. With ids, the files
// belong to the container's IDs; starting is called around the start of a process
// that this takes (see reaper).
func mountRootfs(ctx context.Context, d *disks, r *guestv1.Rootfs, lowers, target string, ids *idmap, starting func() func()) (_ *rootfs, err error) {
	if s := r.GetShare(); s != nil {
		if len(r.GetLower()) > 0 || r.GetWritable() != nil {
			return nil, invalid("the root file system is a shared directory and has trees")
		}
		return mountShared(s, target)
	}
	if len(r.GetLower()) > maxLayers {
		return nil, invalid("the root file system has %d layers, more than %d", len(r.GetLower()), maxLayers)
	}
	if len(r.GetLower()) == 0 && r.GetWritable() == nil {
		return nil, invalid("the root file system has no trees")
	}
	fs := &rootfs{disks: d}
	defer func() {
		if err == nil {
			return
		}
		if uerr := fs.unmount(); uerr != nil {
			err = fmt.Errorf("%w; and then %w", err, uerr)
		}
	}()

	var trees []string
	for _, t := range r.GetLower() {
		p, err := fs.tree(ctx, t, false)
		if err != nil {
			return nil, err
		}
		trees = append(trees, p)
	}
	var upper, work string
	if w := r.GetWritable(); w != nil {
		p, err := fs.tree(ctx, w, true)
		if err != nil {
			return nil, err
		}
		fs.changes = p
		top := ""
		if len(trees) > 0 {
			top = trees[len(trees)-1]
		}
		if upper, err = subdir(p, api.UpperDir, top); err != nil {
			return nil, err
		}
		if work, err = subdir(p, workDir, ""); err != nil {
			return nil, err
		}
	}
	if ids != nil {
		fs.mapped = &mapped{ids: ids, dir: target + "-mapped"}
		var paths []*string
		for i := range trees {
			paths = append(paths, &trees[i])
		}
		changes := fs.changes
		if changes != "" {
			paths = append(paths, &changes)
		}
		if err := fs.mapped.bind(starting, paths...); err != nil {
			return nil, err
		}
		if changes != "" {
			upper, work = filepath.Join(changes, api.UpperDir), filepath.Join(changes, workDir)
		}
	}
	switch {
	case upper == "" && len(trees) == 1:
		fs.path = trees[0]
		return fs, nil
	case len(trees) == 0:
		fs.path = upper
		return fs, nil
	}
	if err := os.Mkdir(lowers, 0o700); err != nil {
		return nil, err
	}
	fs.lowers = lowers
	data, err := overlayOptions(trees, upper, work, lowers)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(target, 0o755); err != nil {
		return nil, err
	}
	flags := uintptr(0)
	if upper == "" {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount("overlay", target, "overlay", flags, data); err != nil {
		return nil, fmt.Errorf("mount the overlay of %d layers: %w", len(trees), err)
	}
	fs.path, fs.mounted = target, true
	return fs, nil
}

// mountShared mounts a share that is the root file system. Its files have the owners
// that a user namespace asks for already: whoever made the directory has seen to it.
func mountShared(s *guestv1.Share, target string) (*rootfs, error) {
	if err := mountShare(s, target); err != nil {
		return nil, err
	}
	return &rootfs{path: target, mounted: true, shared: true}, nil
}

// tree mounts t's disk and returns the path of its directory.
func (r *rootfs) tree(ctx context.Context, t *guestv1.Tree, writable bool) (string, error) {
	root, err := r.disks.acquire(ctx, t.GetDisk(), t.GetFsType(), writable)
	if err != nil {
		return "", err
	}
	r.serials = append(r.serials, t.GetDisk())
	dir := t.GetDirectory()
	if dir == "" {
		return root, nil
	}
	if err := isPlainDir(root, dir); err != nil {
		return "", fmt.Errorf("disk %q: directory %q: %w", t.GetDisk(), dir, err)
	}
	return filepath.Join(root, dir), nil
}

// device is a block device's number.
type device struct{ major, minor int64 }

// devices are the disks that the root file system is on, each once.
func (r *rootfs) devices() ([]device, error) {
	var list []device
	for _, serial := range r.serials {
		dir := r.disks.mountPoint(serial)
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return nil, fmt.Errorf("disk %q: %w", serial, err)
		}
		d := device{int64(unix.Major(st.Dev)), int64(unix.Minor(st.Dev))}
		if !slices.Contains(list, d) {
			list = append(list, d)
		}
	}
	return list, nil
}

// isPlainDir checks that dir is a directory below root and that no component of
// it is a symlink or a mount point: what is on a disk is not trusted.
func isPlainDir(root, dir string) error {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	sub, err := unix.Openat2(fd, dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return err
	}
	return unix.Close(sub)
}

// subdir makes a directory in a writable tree unless it is there. It takes over
// the owner and mode of like, if that is given: the container's root directory
// is the upper one, but must look as the image has it.
func subdir(tree, name, like string) (string, error) {
	p := filepath.Join(tree, name)
	err := os.Mkdir(p, 0o755)
	if errors.Is(err, os.ErrExist) {
		return p, isPlainDir(tree, name)
	}
	if err != nil || like == "" {
		return p, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(like, &st); err != nil {
		return p, &os.PathError{Op: "lstat", Path: like, Err: err}
	}
	if err := unix.Chown(p, int(st.Uid), int(st.Gid)); err != nil {
		return p, &os.PathError{Op: "chown", Path: p, Err: err}
	}
	return p, unix.Chmod(p, st.Mode&0o7777)
}

// overlayOptions returns overlayfs' mount options for trees, lowest first. The
// kernel takes one page of options, so that each tree gets a short link in dir.
func overlayOptions(trees []string, upper, work, dir string) (string, error) {
	links := make([]string, len(trees))
	for i, t := range trees {
		link := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Symlink(t, link); err != nil {
			return "", err
		}
		links[len(trees)-1-i] = link // overlayfs wants the topmost first
	}
	// What the upper directory holds is read by the host, which knows plain
	// overlay whiteouts and opaque directories only: no redirects, no files
	// without their data, whatever the kernel's defaults are. Redirects in a
	// layer are not followed, they would lead out of the layer's tree.
	data := "redirect_dir=nofollow,metacopy=off,index=off,lowerdir=" + strings.Join(links, ":")
	if upper != "" {
		data += ",upperdir=" + upper + ",workdir=" + work
	}
	if len(data) >= os.Getpagesize() {
		return "", invalid("the paths of %d layers take %d bytes, more than a page", len(trees), len(data))
	}
	return data, nil
}

// unmount undoes mountRootfs. It may be repeated after a failure.
func (r *rootfs) unmount() error {
	if r.mounted {
		if err := unix.Unmount(r.path, 0); err != nil {
			return fmt.Errorf("unmount the root file system: %w", err)
		}
		r.mounted = false
		_ = os.Remove(r.path)
	}
	if err := r.mapped.unmount(); err != nil {
		return err
	}
	if r.lowers != "" {
		if err := os.RemoveAll(r.lowers); err != nil {
			return err
		}
		r.lowers = ""
	}
	for len(r.serials) > 0 {
		if err := r.disks.release(r.serials[0]); err != nil {
			return err
		}
		r.serials = r.serials[1:]
	}
	return nil
}
