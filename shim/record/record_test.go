package record

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/applevm/applevm/internal/shortdir"
)

// TestMain lets the test binary stand in for a shim that holds a bundle.
func TestMain(m *testing.M) {
	if dir := os.Getenv("RECORD_TEST_OWN"); dir != "" {
		if _, err := Own(dir); err != nil {
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString("owned\n")
		time.Sleep(10 * time.Minute)
	}
	os.Exit(m.Run())
}

func bundle(t *testing.T) string {
	t.Helper()
	dir := shortdir.New(t)
	b := filepath.Join(dir, "b")
	if err := os.Mkdir(b, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "s"), filepath.Join(b, socketLink)); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCleanRemovesWhatTheRecordNames(t *testing.T) {
	b := bundle(t)
	dir, err := MakeMachineDir(b, "ns", "id")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", st, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shared, err := LANDir(b, "ns", "blue")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(shared, 0o700), os.WriteFile(filepath.Join(shared, "2.json"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	// A socket that was published, and one that another serves by now.
	dead, alive := filepath.Join(t.TempDir(), "dead"), filepath.Join(t.TempDir(), "alive")
	for _, path := range []string{dead, alive} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		t.Cleanup(func() { _ = l.Close() })
		if path == dead {
			_ = l.Close()
		}
	}
	want := Record{MachineDir: dir, LAN: shared, PID: 7, Hooks: true, Sockets: []string{dead, alive, dead + "2"}}
	if err := Save(b, want); err != nil {
		t.Fatal(err)
	}
	got, err := Clean(context.Background(), b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := os.Stat(alive); err != nil {
		t.Error(err)
	}
	for _, d := range []string{dir, shared, dead} {
		if _, err := os.Stat(d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", d, err)
		}
	}
	if _, err := Clean(context.Background(), b); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestCleanOfAnEmptyBundle(t *testing.T) {
	if r, err := Clean(context.Background(), bundle(t)); err != nil || !reflect.DeepEqual(r, Record{}) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestMachineDirsDiffer(t *testing.T) {
	b := bundle(t)
	one, err := MakeMachineDir(b, "ns", "one")
	if err != nil {
		t.Fatal(err)
	}
	two, err := MakeMachineDir(b, "ns", "two")
	if err != nil {
		t.Fatal(err)
	}
	if one == two || len(filepath.Base(one)) > 16 {
		t.Errorf("%s, %s", one, two)
	}
}

func TestCleanKillsTheOwner(t *testing.T) {
	b := bundle(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "RECORD_TEST_OWN="+b)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // killed
		close(ended)
	}()
	if _, err := Clean(context.Background(), b); err != nil {
		t.Error(err)
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		cmd.Process.Kill()
		t.Error("the owner still runs")
	}
	if pid, err := owner(b); err != nil || pid != 0 {
		t.Errorf("owner %d, %v", pid, err)
	}
}

func TestAddress(t *testing.T) {
	b := bundle(t)
	if err := SaveAddress(b, "unix:///x"); err != nil {
		t.Fatal(err)
	}
	if got, err := LoadAddress(b); err != nil || got != "unix:///x" {
		t.Errorf("%q, %v", got, err)
	}
}
