package ext4

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ctdmount "github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// mount mounts an image by loop and unmounts it when the test ends, whatever
// happens to it. It needs root, as CI is.
func mount(t testing.TB, image, options string) string {
	t.Helper()
	dir := t.TempDir()
	// Others look for a free loop device at the same time: mount(8) gives up then.
	m := ctdmount.Mount{Type: "ext4", Source: image, Options: append([]string{"loop"}, strings.Split(options, ",")...)}
	if err := m.Mount(dir); err != nil {
		t.Fatalf("mount %s: %v", image, err)
	}
	t.Cleanup(func() { unmount(t, dir) })
	return dir
}

// unmount returns when the kernel has written all of the image and has given up its loop
// device. It is safe to call twice.
func unmount(t testing.TB, dir string) {
	t.Helper()
	image := loopOf(dir)
	deadline := time.Now().Add(time.Minute)
	// A process that another test starts at the same time has this one's files for a moment.
	err := unix.Unmount(dir, 0)
	for ; err == unix.EBUSY && time.Now().Before(deadline); err = unix.Unmount(dir, 0) {
		time.Sleep(10 * time.Millisecond)
	}
	if err == unix.EINVAL {
		return
	}
	if err != nil {
		t.Errorf("unmount %s: %v", dir, err)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		return
	}
	// Who makes a mount namespace at the same time has a copy of the mount for a moment.
	for image.held() {
		if time.Now().After(deadline) {
			t.Errorf("%s is unmounted, but %s is in use", dir, image.name)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// loopImage is an image that a loop device shows.
type loopImage struct {
	shown string // the file of sysfs that names it, loop_attr_do_show_backing_file in Linux' drivers/block/loop.c
	name  string // empty if there is none
}

// loopOf returns the image that is mounted at dir.
func loopOf(dir string) loopImage {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return loopImage{}
	}
	shown := fmt.Sprintf("/sys/dev/block/%d:%d/loop/backing_file", unix.Major(st.Dev), unix.Minor(st.Dev))
	name, _ := os.ReadFile(shown) //nolint:errcheck // none is shown
	return loopImage{shown, string(name)}
}

// held tells whether the device still shows the image.
func (l loopImage) held() bool {
	name, err := os.ReadFile(l.shown)
	return err == nil && l.name == string(name)
}

// observeKernel walks a mounted directory.
func observeKernel(t testing.TB, dir string) map[string]observed {
	t.Helper()
	out := map[string]observed{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", path, err)
		}
		at := func(ts unix.Timespec) time.Time { return time.Unix(ts.Unix()) }
		o := observed{
			Type: typeLetters[st.Mode&modeFmt], Perm: st.Mode & modePerm, UID: st.Uid, GID: st.Gid, Nlink: uint32(st.Nlink),
			Mtime: at(st.Mtim), Atime: at(st.Atim), Ctime: at(st.Ctim), Ino: uint32(st.Ino),
		}
		switch o.Type {
		case "f":
			o.Size = st.Size
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			// First: what has been read of an unwritten extent counts as data.
			if o.Data, err = observeData(func(off int64) (int64, int64, error) { return kernelData(f, off) }); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			if o.Sum, err = sum(f); err != nil {
				return err
			}
		case "l":
			o.Size = st.Size
			if o.Target, err = os.Readlink(path); err != nil {
				return err
			}
		case "c", "b":
			o.Major, o.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		}
		if o.Xattrs, err = kernelXattrs(path); err != nil {
			return fmt.Errorf("xattrs of %s: %w", path, err)
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if rel == "." {
			rel = ""
		}
		out[rel] = o
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kernelXattrs(path string) (map[string]string, error) {
	n, err := unix.Llistxattr(path, nil)
	if err != nil || n == 0 {
		return nil, err
	}
	buf := make([]byte, 1<<16)
	if n, err = unix.Llistxattr(path, buf); err != nil {
		return nil, err
	}
	out := map[string]string{}
	value := make([]byte, 1<<16)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = string(value[:n])
	}
	return out, nil
}

// observeBoth mounts a layer's image, checks that the reader sees what the
// kernel sees, and returns it.
func observeBoth(t testing.TB, image string) map[string]observed {
	t.Helper()
	dir := mount(t, image, "ro")
	kernel := observeKernel(t, filepath.Join(dir, DefaultRoot))
	unmount(t, dir)
	diffObserved(t, "reader", observeReader(t, openImage(t, image), DefaultRoot), "kernel", kernel)
	return kernel
}

// kernelData is openRegular.Data by the kernel.
func kernelData(f *os.File, off int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if err != nil {
		return 0, 0, os.NewSyscallError("lseek", err)
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	if err == nil {
		_, err = unix.Seek(int(f.Fd()), 0, io.SeekStart)
	}
	return start, end, os.NewSyscallError("lseek", err)
}
