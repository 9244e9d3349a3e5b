package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestStandInHasTheFrameworksAPI: what internal/vzsim exports, the real package exports
// alike, so that a driver that compiles with the one compiles with the other.
func TestStandInHasTheFrameworksAPI(t *testing.T) {
	r, err := check("arm64", "../../vmm/vz", "../../vmm/qemu")
	if err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob("../vzsim/*.go")
	if err != nil || len(names) == 0 {
		t.Fatalf("no stand-in: %v", err)
	}
	sources := map[string]string{}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sources[name] = string(b)
	}
	compared, differ := standInDiffers(t, r, sources)
	for _, d := range differ {
		t.Error(d)
	}
	if compared < 90 {
		t.Errorf("%d things were compared, which cannot be all", compared)
	}
	t.Logf("%d functions, methods, types and constants are those of the framework", compared)

	for name, tt := range map[string]struct{ source, want string }{
		"a function":            {`func NewNothing() {}`, "NewNothing: not in the framework"},
		"a parameter":           {`func NewGenericMachineIdentifier(int) (*GenericMachineIdentifier, error) { return nil, nil }; type GenericMachineIdentifier struct{}`, "NewGenericMachineIdentifier: func(int) (*vz.GenericMachineIdentifier, error), in the framework func() (*vz.GenericMachineIdentifier, error)"},
		"a method":              {`type VirtioSocketConnection struct{}; func (*VirtioSocketConnection) CloseWrite() error { return nil }`, "VirtioSocketConnection.CloseWrite: not in the framework"},
		"a result":              {`type VirtualMachine struct{}; func (*VirtualMachine) Stop() {}`, "VirtualMachine.Stop: func(), in the framework func() (error)"},
		"a constant":            {`type VirtualMachineState int; const VirtualMachineStatePaused VirtualMachineState = 7`, "VirtualMachineStatePaused: 7, in the framework 2"},
		"a field":               {`type NSError struct{ Code string }`, "NSError.Code: string, in the framework int"},
		"what implements":       {`type BootLoader interface{}; type VirtualMachine struct{}`, "VirtualMachine is a BootLoader, in the framework it is not"},
		"the kind of a type":    {`type VirtualMachineState string`, "VirtualMachineState: string, in the framework int"},
		"a function for a type": {`func VirtualMachine() {}`, "VirtualMachine: not the same kind of thing in the framework"},
	} {
		_, differ := standInDiffers(t, r, map[string]string{"x.go": "package vz\n" + tt.source})
		if !slices.Contains(differ, tt.want) {
			t.Errorf("%s: %q is not among %q", name, tt.want, differ)
		}
	}
}

// standInDiffers compares what a stand-in of these sources exports with the framework, and
// returns how many things it has compared, and how they differ.
func standInDiffers(t *testing.T, r report, sources map[string]string) (compared int, differ []string) {
	t.Helper()
	fset := token.NewFileSet()
	var files []*ast.File
	for name, source := range sources {
		f, err := parser.ParseFile(fset, name, source, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	conf := types.Config{IgnoreFuncBodies: true, Importer: importer{nil, r.packages}}
	sim, err := conf.Check(framework, fset, files, nil)
	if err != nil {
		t.Fatal(err)
	}
	real := r.packages[framework]
	same := func(name, got, want string) {
		compared++
		if got != want {
			differ = append(differ, fmt.Sprintf("%s: %s, in the framework %s", name, got, want))
		}
	}
	for _, name := range sim.Scope().Names() {
		is, want := sim.Scope().Lookup(name), real.Scope().Lookup(name)
		switch {
		case !is.Exported():
			continue
		case want == nil:
			differ = append(differ, name+": not in the framework")
			continue
		case fmt.Sprintf("%T", is) != fmt.Sprintf("%T", want):
			differ = append(differ, name+": not the same kind of thing in the framework")
			continue
		}
		switch is := is.(type) {
		case *types.Const:
			same(name, is.Val().String(), want.(*types.Const).Val().String())
		case *types.TypeName:
			if a, b := is.Type().Underlying(), want.Type().Underlying(); plain(a) || plain(b) {
				same(name, shape(a), shape(b))
			}
			for part, got := range parts(is.Type()) {
				if of, ok := parts(want.Type())[part]; ok {
					same(name+"."+part, got, of)
				} else {
					differ = append(differ, name+"."+part+": not in the framework")
				}
			}
		default:
			same(name, shape(is.Type()), shape(want.Type()))
		}
	}
	for _, i := range interfaces(sim) {
		of := real.Scope().Lookup(i.Name())
		for _, name := range sim.Scope().Names() {
			is, want := sim.Scope().Lookup(name), real.Scope().Lookup(name)
			if _, ok := is.(*types.TypeName); !ok || types.IsInterface(is.Type()) || of == nil || want == nil || !implements(is, i) {
				continue
			}
			compared++
			if !implements(want, of) {
				differ = append(differ, fmt.Sprintf("%s is a %s, in the framework it is not", name, i.Name()))
			}
		}
	}
	return compared, differ
}

// plain tells whether a type is more than a name for its fields and methods.
func plain(t types.Type) bool {
	switch t.(type) {
	case *types.Struct, *types.Interface:
		return false
	}
	return true
}

// parts are the exported methods and fields of a type, by their names.
func parts(t types.Type) map[string]string {
	out := map[string]string{}
	if s, ok := t.Underlying().(*types.Struct); ok {
		for f := range s.Fields() {
			if f.Exported() && !f.Embedded() {
				out[f.Name()] = shape(f.Type())
			}
		}
	}
	if !types.IsInterface(t) {
		t = types.NewPointer(t)
	}
	for m := range types.NewMethodSet(t).Methods() {
		if m.Obj().Exported() {
			out[m.Obj().Name()] = shape(m.Obj().Type())
		}
	}
	return out
}

func interfaces(p *types.Package) []types.Object {
	var out []types.Object
	for _, name := range p.Scope().Names() {
		if o, ok := p.Scope().Lookup(name).(*types.TypeName); ok && o.Exported() && types.IsInterface(o.Type()) {
			out = append(out, o)
		}
	}
	return out
}

func implements(t, i types.Object) bool {
	return types.Implements(types.NewPointer(t.Type()), i.Type().Underlying().(*types.Interface))
}

// shape is a type without the names of its parameters.
func shape(t types.Type) string {
	switch t := t.(type) {
	case *types.Signature:
		s := "func(" + tuple(t.Params()) + ")"
		if t.Variadic() {
			s = "func(" + tuple(t.Params()) + "...)"
		}
		if t.Results().Len() > 0 {
			s += " (" + tuple(t.Results()) + ")"
		}
		return s
	case *types.Pointer:
		return "*" + shape(t.Elem())
	case *types.Slice:
		return "[]" + shape(t.Elem())
	}
	return types.TypeString(t, (*types.Package).Name)
}

func tuple(t *types.Tuple) string {
	var out []string
	for v := range t.Variables() {
		out = append(out, shape(v.Type()))
	}
	return strings.Join(out, ", ")
}
