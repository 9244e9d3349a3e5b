package plan

import (
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
	"github.com/applevm/applevm/vmm"
)

// volumeOptions are the options of mount(8) that a block volume takes. They are those of the
// container's mount of it; the file system in the machine is always mounted in one way.
var volumeOptions = []string{"ro", "rw", "rro", "nodev", "dev", "nosuid", "suid", "noexec", "exec", "noatime", "atime", "relatime", "norelatime", "strictatime",
	"nodiratime", "diratime", "private", "rprivate", "bind", "rbind"}

// block attaches an ext4 image as a disk of its own. The virtual machine monitor locks the
// image as long as it runs: it has one writer, or readers.
func (out *mounted) block(m specs.Mount, dest string, stat func(string) (fs.FileInfo, error)) error {
	st, err := mountSource(m, dest, stat)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return unsupported("mounting %s at %s as ext4 is not implemented: it is no image file", m.Source, dest)
	}
	for _, o := range m.Options {
		if !slices.Contains(volumeOptions, o) {
			return unsupported("the mount option %q of the ext4 image %s at %s is not implemented", o, m.Source, dest)
		}
	}
	if err := checkExt4(m.Source); err != nil {
		return invalid("mount the image %s at %s: %w", m.Source, dest, err)
	}
	readOnly := isReadOnly(m)
	path := filepath.Clean(m.Source)
	i := slices.IndexFunc(out.disks, func(d vmm.Disk) bool { return d.Path == path })
	if i < 0 {
		i = len(out.disks)
		out.disks = append(out.disks, vmm.Disk{ID: fmt.Sprintf("volume-%d", i), Path: path, ReadOnly: readOnly})
	} else if out.disks[i].ReadOnly != readOnly {
		return invalid("the image %s is mounted read-only and writable", m.Source)
	}
	source := out.disks[i].ID
	if readOnly {
		source += api.DiskReadOnly
	}
	out.guest = append(out.guest, specs.Mount{Destination: dest, Type: api.DiskMount, Source: source, Options: m.Options})
	return nil
}

// The magic number of ext4's superblock, and where in the file system it is
// (Documentation/filesystems/ext4/super.rst).
const (
	ext4Magic   = 0xEF53
	ext4MagicAt = 1024 + 0x38
)

// checkExt4 tells a file that cannot be a volume before there is a machine; the guest's kernel
// looks at the rest.
func checkExt4(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var magic [2]byte
	if _, err := f.ReadAt(magic[:], ext4MagicAt); err != nil && err != io.EOF { //nolint:errorlint // ReadAt returns it bare
		return err
	}
	if binary.LittleEndian.Uint16(magic[:]) != ext4Magic {
		return fmt.Errorf("it has no ext4 file system: make one with applevm-snapshotter volume %s SIZE", path)
	}
	return nil
}
