package options

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/config"
)

func TestApply(t *testing.T) {
	path := filepath.Join(t.TempDir(), "o.toml")
	if err := os.WriteFile(path, []byte("[machine]\ncpus = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		o    *runtimeoptions.Options
		want Asked
		dir  string
		err  string
	}{
		{"file", &runtimeoptions.Options{ConfigPath: path}, Asked{CPUs: 3}, "/g", ""},
		{"body", &runtimeoptions.Options{ConfigBody: []byte("TypeUrl='x'\n[machine]\nmemory_mib=700\n[guest]\ndir='/other'\n")}, Asked{MemoryMiB: 700}, "/other", ""},
		{"unknown", &runtimeoptions.Options{ConfigBody: []byte("[machine]\ncpu=3\n")}, Asked{}, "/g", "unknown setting"},
		{"invalid", &runtimeoptions.Options{ConfigBody: []byte("[machine]\nmemory_mib=3\n")}, Asked{}, "/g", "memory_mib is 3"},
		{"relative", &runtimeoptions.Options{ConfigPath: "o.toml"}, Asked{}, "/g", "absolute path"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := proto.Marshal(tc.o)
			if err != nil {
				t.Fatal(err)
			}
			c := config.Default()
			c.Guest.Dir = "/g"
			got, err := Apply(&c, &anypb.Any{TypeUrl: typeName, Value: b})
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Fatalf("error %v, want %q", err, tc.err)
			}
			if got != tc.want || c.Guest.Dir != tc.dir || c.Machine.BootTimeout != config.Default().Machine.BootTimeout {
				t.Errorf("%+v, %+v", got, c)
			}
		})
	}
	c := config.Default()
	if got, err := Apply(&c, &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{1}}); err != nil || got != (Asked{}) {
		t.Errorf("another runtime's: %+v, %v", got, err)
	}
}
