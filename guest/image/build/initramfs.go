package build

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/applevm/applevm/guest/modules"
)

// dirs are the initramfs's directories, parents first: mount points, and what
// programs expect to exist.
var dirs = []struct {
	name string
	mode uint64
}{
	{"dev", 0o755}, {"etc", 0o755}, {"lib", 0o755}, {"lib/modules", 0o755}, {"mnt", 0o755},
	{"proc", 0o555}, {"root", 0o700}, {"run", 0o755}, {"sys", 0o555}, {"tmp", 0o1777}, {"var", 0o755},
}

// writeInitramfs writes a cpio archive that the kernel unpacks as its root
// file system. It is not compressed: under emulation, 18 MB as they are and 8 MB
// of lz4 boot in the same time, and gzip or zstd take 400 ms more.
func writeInitramfs(w io.Writer, init []byte, mods fs.FS) error {
	out := bufio.NewWriterSize(w, 1<<20)
	var recs []cpio.Record
	for _, d := range dirs {
		recs = append(recs, cpio.Directory(d.name, d.mode))
	}
	recs = append(recs,
		// The kernel opens /dev/console for init before anything is mounted.
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.StaticFile("init", string(init), 0o755),
	)
	err := fs.WalkDir(mods, ".", func(name string, e fs.DirEntry, err error) error {
		switch to := path.Join(strings.TrimPrefix(modules.Dir, "/"), name); {
		case name == "." && errors.Is(err, fs.ErrNotExist):
			return fs.SkipAll // the kernel has none
		case err != nil:
			return err
		case e.IsDir():
			recs = append(recs, cpio.Directory(to, 0o755))
			return nil
		default:
			b, err := fs.ReadFile(mods, name)
			recs = append(recs, cpio.StaticFile(to, string(b), 0o644))
			return err
		}
	})
	if err != nil {
		return fmt.Errorf("kernel modules: %w", err)
	}
	// Times and the like are zero: the same content gives the same bytes.
	for i := range recs {
		recs[i] = cpio.MakeReproducible(recs[i])
		recs[i].Ino = uint64(i + 1)
		recs[i].NLink = 1
	}
	archive := cpio.Newc.Writer(out)
	if err := cpio.WriteRecords(archive, recs); err != nil {
		return err
	}
	if err := cpio.WriteTrailer(archive); err != nil {
		return err
	}
	return out.Flush()
}
