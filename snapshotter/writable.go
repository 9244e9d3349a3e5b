package snapshotter

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/applevm/applevm/snapshotter/ext4"
)

const (
	// writableFile is the writable image in a snapshot's directory.
	writableFile = "rw.img"
	// imageType is the file system type of every image.
	imageType = "ext4"
)

// writableSize returns the size in bytes of a container's writable image: what
// the client asks for by label, else the configured one.
func writableSize(configured int64, labels map[string]string) (int64, error) {
	label, ok := labels[snapshots.LabelSnapshotMaxSize]
	if !ok {
		return configured, nil
	}
	size, err := strconv.ParseInt(label, 10, 64)
	if err != nil || size < ext4.MinEmptySize || size > ext4.MaxEmptySize {
		return 0, fmt.Errorf("label %s is %q, want %d to %d bytes: %w",
			snapshots.LabelSnapshotMaxSize, label, int64(ext4.MinEmptySize), int64(ext4.MaxEmptySize), errdefs.ErrInvalidArgument)
	}
	return size, nil
}

// createWritable makes an empty, sparse, journaled image of size bytes.
func createWritable(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	// A random UUID: overlayfs tells file systems apart by it.
	err = ext4.CreateEmpty(f, size, ext4.EmptyOptions{})
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("make writable image: %w", err)
	}
	return nil
}

// Offsets in an image, from the superblock's 1024 on; see
// Documentation/filesystems/ext4/super.rst in the kernel's source.
const (
	superblockOffset  = 1024
	mountTimeOffset   = 0x2c // s_mtime, 32 bits
	mountCountOffset  = 0x34 // s_mnt_count, 16 bits
	superblockMagicAt = 0x38 // s_magic, 16 bits
	superblockMagic   = 0xef53
)

// writableUsed reports whether a kernel has ever mounted the image read-write.
func writableUsed(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	var sb [superblockMagicAt + 2]byte
	if _, err := f.ReadAt(sb[:], superblockOffset); err != nil {
		return false, fmt.Errorf("writable image %s: %w", path, err)
	}
	if binary.LittleEndian.Uint16(sb[superblockMagicAt:]) != superblockMagic {
		return false, fmt.Errorf("writable image %s holds no ext4 file system", path)
	}
	return binary.LittleEndian.Uint32(sb[mountTimeOffset:]) != 0 ||
		binary.LittleEndian.Uint16(sb[mountCountOffset:]) != 0, nil
}
