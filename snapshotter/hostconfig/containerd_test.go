package hostconfig

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
)

// TestContainerdReadsTheConfig loads what Write writes with containerd's own
// loader.
func TestContainerdReadsTheConfig(t *testing.T) {
	var b bytes.Buffer
	want := Containerd{Address: `/run/a "b"/s.sock`, Platform: "linux/arm64", Unpacks: 3}
	if err := want.Write(&b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	var c srvconfig.Config
	if err := srvconfig.LoadConfig(context.Background(), path, &c); err != nil {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	sn, diff := c.ProxyPlugins[Snapshotter], c.ProxyPlugins[Differ]
	if sn.Type != "snapshot" || sn.Address != want.Address || !slices.Equal(sn.Capabilities, []string{"rebase", "remap-ids"}) || sn.Platform != want.Platform {
		t.Errorf("snapshot plugin %+v", sn)
	}
	if diff.Type != "diff" || diff.Address != want.Address || diff.Platform != want.Platform {
		t.Errorf("diff plugin %+v", diff)
	}
	service := struct {
		Default []string `toml:"default"`
	}{}
	decode(t, &c, "io.containerd.service.v1.diff-service", &service)
	if !slices.Equal(service.Default, []string{Differ, "walking"}) {
		t.Errorf("diff service %+v", service)
	}
	transfer := struct {
		Unpacks int `toml:"max_concurrent_unpacks"`
		Config  []struct {
			Platform    string `toml:"platform"`
			Snapshotter string `toml:"snapshotter"`
			Differ      string `toml:"differ"`
			Optional    bool   `toml:"optional"`
		} `toml:"unpack_config"`
	}{}
	decode(t, &c, "io.containerd.transfer.v1.local", &transfer)
	if transfer.Unpacks != 3 || len(transfer.Config) != 2 {
		t.Fatalf("transfer %+v", transfer)
	}
	if first := transfer.Config[0]; first.Platform != want.Platform || first.Snapshotter != Snapshotter || first.Differ != Differ || first.Optional {
		t.Errorf("unpack_config %+v", first)
	}
}

func decode(t *testing.T, c *srvconfig.Config, id string, into any) {
	t.Helper()
	if _, ok := c.Plugins[id]; !ok {
		t.Fatalf("no plugin %s in %v", id, c.Plugins)
	}
	if _, err := c.Decode(context.Background(), id, into); err != nil {
		t.Fatal(err)
	}
}

func TestWriteRefuses(t *testing.T) {
	for _, c := range []Containerd{
		{},
		{Address: "/s", Platform: "arm64\"\n"},
		{Address: "/s", Unpacks: -1},
	} {
		if err := c.Write(&bytes.Buffer{}); err == nil {
			t.Errorf("%+v was written", c)
		}
	}
}
