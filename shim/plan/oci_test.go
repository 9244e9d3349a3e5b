package plan

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// specFields lists the paths of all fields below a type of the spec, by their
// names in JSON: "a.b", "list[].b". Maps are listed by their values' fields.
func specFields(t reflect.Type, path string, out *[]string) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		if t.Kind() == reflect.Slice && elem(t).Kind() == reflect.Struct {
			path += "[]"
		}
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		*out = append(*out, path)
		return
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			specFields(f.Type, path, out)
		case path == "":
			specFields(f.Type, name, out)
		default:
			specFields(f.Type, path+"."+name, out)
		}
	}
}

func elem(t reflect.Type) reflect.Type {
	for t = t.Elem(); t.Kind() == reflect.Pointer; t = t.Elem() {
	}
	return t
}

var ociRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (\\w+) \\| (.*)\\|$")

// TestSpecIsDocumented compares docs/oci.md with the spec's Go structs: each
// field has one row, each row is about fields, and says what becomes of them.
func TestSpecIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/oci.md")
	if err != nil {
		t.Fatal(err)
	}
	var fields []string
	specFields(reflect.TypeFor[specs.Spec](), "", &fields)
	if len(fields) < 100 || !slices.Contains(fields, "linux.resources.blockIO.weightDevice[].major") {
		t.Fatalf("the walk over the spec is wrong: %q", fields)
	}
	rows := map[string]int{}
	for _, m := range ociRow.FindAllStringSubmatch(string(b), -1) {
		if _, ok := rows[m[1]]; ok {
			t.Errorf("%s has two rows", m[1])
		}
		rows[m[1]] = 0
		if !slices.Contains([]string{"applied", "mapped", "dropped", "refused"}, m[2]) {
			t.Errorf("%s is %q", m[1], m[2])
		}
		if m[2] != "applied" && strings.TrimSpace(m[3]) == "" {
			t.Errorf("%s is %s without a reason", m[1], m[2])
		}
	}
	for _, f := range fields {
		found := 0
		for row := range rows {
			prefix, all := strings.CutSuffix(row, ".*")
			if row == f || all && (strings.HasPrefix(f, prefix+".") || f == prefix) {
				rows[row]++
				found++
			}
		}
		if found != 1 {
			t.Errorf("docs/oci.md has %d rows about %s, want one", found, f)
		}
	}
	for row, n := range rows {
		if n == 0 {
			t.Errorf("docs/oci.md has a row about %s, which the spec does not have", row)
		}
	}
}
