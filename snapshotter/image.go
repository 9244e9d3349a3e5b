package snapshotter

import (
	"os"

	"github.com/applevm/applevm/snapshotter/ext4"
)

// image is an open layer image.
type image struct {
	*ext4.FS
	file *os.File
}

func openImage(path string) (*image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	fsys, err := ext4.Open(f, st.Size())
	if err != nil {
		f.Close()
		return nil, err
	}
	return &image{FS: fsys, file: f}, nil
}

func (i *image) Close() error { return i.file.Close() }
