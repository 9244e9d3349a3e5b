package options

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/applevm/applevm/config"
	optionsv1 "github.com/applevm/applevm/config/options/v1"
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
	// As containerd's Go client sends it.
	a, err := typeurl.MarshalAny(&optionsv1.Options{
		Guest:   &optionsv1.Guest{Dir: "/typed"},
		Machine: &optionsv1.Machine{Cpus: 2, MemoryMib: 900, BootTimeoutNs: int64(7 * time.Second)},
		Qemu:    &optionsv1.QEMU{Accel: "tcg"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Apply(&c, typeurl.MarshalProto(a))
	if want := (Asked{2, 900}); err != nil || got != want || c.Guest.Dir != "/typed" || c.QEMU.Accel != "tcg" || c.Machine.BootTimeout != config.Duration(7*time.Second) {
		t.Errorf("a typed message: %+v, %v, %+v", got, err, c)
	}
	for name, o := range map[string]*optionsv1.Options{
		"memory_mib": {Machine: &optionsv1.Machine{MemoryMib: math.MaxUint64}}, "cpus": {Machine: &optionsv1.Machine{Cpus: math.MaxUint32}}, "accel": {Qemu: &optionsv1.QEMU{Accel: "warp"}},
	} {
		b, err := proto.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Apply(&c, &anypb.Any{TypeUrl: "types.example/applevm.options.v1.Options", Value: b}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("a wrong %s: %v", name, err)
		}
	}
	if got, err := Apply(&c, &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{1}}); err != nil || got != (Asked{}) {
		t.Errorf("another runtime's: %+v, %v", got, err)
	}
}
