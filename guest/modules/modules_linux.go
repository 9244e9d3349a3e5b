package modules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// LoadAll loads the *.ko files of dir in lexical order. A directory that does
// not exist has none: a kernel may have everything built in. A module that is
// there already is no error; any other failure is, and ends the loading, since
// later modules may need the one that failed.
func LoadAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list kernel modules: %w", err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".ko") {
			continue
		}
		if err := load(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("load kernel module %s: %w", e.Name(), err)
		}
	}
	return nil
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
