// Package kmod chooses the kernel modules that a guest needs from a Debian
// kernel package, puts them in an order in which they load, and makes them
// smaller.
package kmod

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Module is one loadable module.
type Module struct {
	// Name is the module's name as the kernel shows it, with underscores.
	Name string
	// Path is its file in the tree.
	Path string
	// Data is the file's content.
	Data []byte
}

// Name returns the name of the module that a file holds: what the kernel calls
// virtio_rng is in virtio-rng.ko.
func Name(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// Resolve returns the wanted modules of the tree and all they depend on, each
// after its dependencies. The tree is /lib/modules/RELEASE of a kernel package:
// *.ko files anywhere and modules.builtin, which lists what the kernel has in
// itself; wanted modules that are built in are left out. A module that is
// neither there nor built in is an error.
//
// Debian's packages hold no modules.dep (depmod runs at installation), so the
// dependencies are taken from the modules themselves.
func Resolve(tree fs.FS, wanted []string) ([]Module, error) {
	files, err := find(tree)
	if err != nil {
		return nil, err
	}
	builtin, err := builtins(tree)
	if err != nil {
		return nil, err
	}
	var (
		order []Module
		state = map[string]int{} // 1: being resolved, 2: done
		visit func(name, by string) error
	)
	visit = func(name, by string) error {
		switch {
		case state[name] == 2 || builtin[name]:
			return nil
		case state[name] == 1:
			return fmt.Errorf("kernel module %s depends on itself by way of %s", name, by)
		}
		state[name] = 1
		file, ok := files[name]
		if !ok {
			return fmt.Errorf("the kernel package has no module %s, needed by %s", name, by)
		}
		data, err := fs.ReadFile(tree, file)
		if err != nil {
			return fmt.Errorf("kernel module %s: %w", name, err)
		}
		deps, err := depends(data)
		if err != nil {
			return fmt.Errorf("kernel module %s: %w", name, err)
		}
		for _, d := range deps {
			if err := visit(Name(d), name); err != nil {
				return err
			}
		}
		state[name] = 2
		order = append(order, Module{Name: name, Path: file, Data: data})
		return nil
	}
	for _, w := range wanted {
		if err := visit(Name(w), "the guest"); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func find(tree fs.FS) (map[string]string, error) {
	files := map[string]string{}
	err := fs.WalkDir(tree, ".", func(p string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(p, ".ko") {
			files[Name(p)] = p
		}
		return err
	})
	return files, err
}

func builtins(tree fs.FS) (map[string]bool, error) {
	b, err := fs.ReadFile(tree, "modules.builtin")
	if err != nil {
		return nil, fmt.Errorf("list of the kernel's built-in modules: %w", err)
	}
	names := map[string]bool{}
	for _, p := range strings.Fields(string(b)) {
		names[Name(p)] = true
	}
	return names, nil
}

var errNoModinfo = errors.New("no .modinfo section: not a kernel module")

// depends reads the modules that a module declares to need: the key "depends"
// of its .modinfo section, which holds key=value strings that end with a zero.
func depends(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errNoModinfo
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, kv := range strings.Split(string(info), "\x00") {
		if v, ok := strings.CutPrefix(kv, "depends="); ok {
			return strings.FieldsFunc(v, func(r rune) bool { return r == ',' }), nil
		}
	}
	return nil, nil
}
