package hostcheck

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/docker/go-units"

	"github.com/applevm/applevm/guest/image"
)

// checkGuest looks at the guest image, as a machine's start does.
func (h *host) checkGuest(context.Context) []Finding {
	dir := h.cfg.Guest.Dir
	if _, err := os.Stat(filepath.Join(dir, image.File)); errors.Is(err, fs.ErrNotExist) {
		return []Finding{fail("build one with `make guest` and install it there, or set guest.dir", "guest image: there is none in %s", dir)}
	}
	img, err := image.OpenFor(dir, runtime.GOARCH)
	if err != nil {
		return []Finding{fail("build the image anew with `make guest`, or set guest.dir to another", "guest image: %v", err)}
	}
	found := []Finding{ok("guest image: %s for %s, Linux %s (kernel: %s)", dir, img.Arch, img.Release, img.KernelKind)}
	for _, f := range []struct{ what, path string }{{"guest kernel", img.Kernel}, {"guest initramfs", img.Initrd}} {
		found = append(found, checkReadable(f.what, f.path))
	}
	return found
}

// checkReadable opens a file of the guest image, as the VMM will.
func checkReadable(what, path string) Finding {
	f, err := os.Open(path)
	if err != nil {
		return fail("make it readable for the user that runs containerd", "%s: %s cannot be read: %s", what, path, reason(err))
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fail("build the image anew with `make guest`", "%s: %s: %s", what, path, reason(err))
	}
	return ok("%s: %s, %s", what, path, units.BytesSize(float64(st.Size())))
}
