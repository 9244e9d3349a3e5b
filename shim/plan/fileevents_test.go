package plan

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/guest/api"
)

func TestFileEvents(t *testing.T) {
	shared := []specs.Mount{{Type: "tmpfs"}, {Type: api.ShareMount}}
	for _, tt := range []struct {
		name       string
		annotation string
		mounts     []specs.Mount
		configured bool
		want       bool
		err        string
	}{
		{name: "as configured", mounts: shared, configured: true, want: true},
		{name: "configured not to", mounts: shared},
		{name: "nothing is shared", mounts: shared[:1], configured: true},
		{name: "not for this one", annotation: "false", mounts: shared, configured: true},
		{name: "for this one", annotation: "1", mounts: shared, want: true},
		{name: "nonsense", annotation: "maybe", mounts: shared, err: `annotation dev.applevm.file-events is "maybe": use true or false`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := map[string]string{}
			if tt.annotation != "" {
				a[AnnotationFileEvents] = tt.annotation
			}
			got, err := fileEvents(a, tt.mounts, tt.configured)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if got != tt.want || text != tt.err {
				t.Errorf("%v, %q, want %v, %q", got, text, tt.want, tt.err)
			}
		})
	}
}
