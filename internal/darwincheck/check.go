package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// framework is the package that has Virtualization.framework for Go.
const framework = "github.com/Code-Hex/vz/v3"

// report is what was checked for one architecture.
type report struct {
	own, cgo, others int
	errors           []error // of the project's own packages
	packages         map[string]*types.Package
}

// listed is a package as go list -json prints it.
type listed struct {
	ImportPath        string
	Dir               string
	GoFiles, CgoFiles []string
	Deps              []string
	ImportMap         map[string]string
	DepOnly           bool
	Error             *struct{ Err string }
}

// leftOut are packages that only ever run in the guest, which is Linux.
func leftOut(path string) bool {
	return strings.HasSuffix(path, "/cmd/applevm-agent") || strings.Contains(path, "/guest/agent")
}

// check type-checks the packages that match patterns, and all that they import, as a Mac
// with this architecture would compile them.
func check(arch string, patterns ...string) (report, error) {
	var r report
	packages, err := list(arch, patterns)
	if err != nil {
		return r, err
	}
	fset := token.NewFileSet()
	r.packages = map[string]*types.Package{"unsafe": types.Unsafe}
	for _, p := range packages { // each comes after what it imports
		own := !p.DepOnly
		if p.ImportPath == "unsafe" || own && leftOut(p.ImportPath) || len(p.GoFiles)+len(p.CgoFiles) == 0 {
			continue
		}
		if own && p.Error != nil {
			r.errors = append(r.errors, fmt.Errorf("%s: %s", p.ImportPath, p.Error.Err))
		}
		files, err := parse(fset, p)
		if err != nil {
			return r, err
		}
		conf := types.Config{
			FakeImportC:      true,
			IgnoreFuncBodies: !own,
			Sizes:            types.SizesFor("gc", arch),
			Importer:         importer{p.ImportMap, r.packages},
			// Errors of others are artefacts of the missing C, and do not keep theirs from being used.
			Error: func(err error) {
				if own {
					r.errors = append(r.errors, err)
				}
			},
		}
		pkg, _ := conf.Check(p.ImportPath, fset, files, nil) // its errors have been told
		r.packages[p.ImportPath] = pkg
		if !own {
			r.others++
			continue
		}
		r.own++
		if slices.Contains(p.Deps, framework) {
			r.cgo++
		}
	}
	if r.own == 0 {
		return r, errors.New("no package was checked")
	}
	return r, nil
}

// list returns the packages and all that they import, each after what it imports.
func list(arch string, patterns []string) ([]*listed, error) {
	cmd := exec.Command("go", append([]string{"list", "-deps", "-e", "-json"}, patterns...)...)
	cmd.Env = append(os.Environ(), "GOOS=darwin", "GOARCH="+arch, "CGO_ENABLED=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list for darwin/%s: %w: %s", arch, err, &stderr)
	}
	var packages []*listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); err == io.EOF {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list's output: %w", err)
		}
		packages = append(packages, &p)
	}
}

func parse(fset *token.FileSet, p *listed) ([]*ast.File, error) {
	var files []*ast.File
	for _, names := range [][]string{p.GoFiles, p.CgoFiles} {
		for _, name := range names {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
	}
	return files, nil
}

// importer finds packages that have been checked.
type importer struct {
	renamed map[string]string // vendored in the standard library
	done    map[string]*types.Package
}

// Import implements types.Importer.
func (i importer) Import(path string) (*types.Package, error) {
	if to, ok := i.renamed[path]; ok {
		path = to
	}
	if p := i.done[path]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("package %s is not there for darwin", path)
}
