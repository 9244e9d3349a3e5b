package plan

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
)

func TestNewVolumes(t *testing.T) {
	fresh, used := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(used, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	volume := map[string]string{"nerdctl/mounts.3": `{"Type":"volume","Name":"v","Source":"/x","Destination":"/data/","RW":true}`}
	for name, tt := range map[string]struct {
		annotations map[string]string
		source      string
		options     []string
		want        bool
	}{
		"new":            {volume, fresh, []string{"rbind"}, true},
		"in one list":    {map[string]string{"nerdctl/mounts": `[{"Type":"bind","Destination":"/x"},{"Type":"volume","Destination":"/data"}]`}, fresh, []string{"rbind"}, true},
		"in use":         {volume, used, []string{"rbind"}, false},
		"read-only":      {volume, fresh, []string{"rbind", "ro"}, false},
		"a bind mount":   {map[string]string{"nerdctl/mounts.0": `{"Type":"bind","Destination":"/data"}`}, fresh, []string{"rbind"}, false},
		"another place":  {map[string]string{"nerdctl/mounts.0": `{"Type":"volume","Destination":"/data2"}`}, fresh, []string{"rbind"}, false},
		"not JSON":       {map[string]string{"nerdctl/mounts.0": `{`, "nerdctl/mounts": `7`}, fresh, []string{"rbind"}, false},
		"no annotations": {nil, fresh, []string{"rbind"}, false},
	} {
		in := input(t, func(s *specs.Spec) {
			s.Annotations = tt.annotations
			s.Mounts = []specs.Mount{{Destination: "/data", Type: "none", Source: tt.source, Options: tt.options}}
		})
		in.IsEmpty = IsEmpty
		p, err := New(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(guestSpecOf(t, p).Mounts[0].Options, api.CopyUpOption); got != tt.want || p.CopiesUp != tt.want {
			t.Errorf("%s: filled %t, long wait %t; want %t", name, got, p.CopiesUp, tt.want)
		}
	}
}
