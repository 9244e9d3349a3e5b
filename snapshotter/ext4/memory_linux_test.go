package ext4

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// memoryHelper, set to an image's path, makes the test binary convert the tar
// on its standard input and exit.
const memoryHelper = "APPLEVM_EXT4_TEST_CONVERT"

func TestMain(m *testing.M) {
	if path := os.Getenv(memoryHelper); path != "" {
		if err := convertStdin(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func convertStdin(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := NewLayerWriter(f, LayerOptions{})
	if err := w.ReadTar(context.Background(), os.Stdin); err != nil {
		return err
	}
	if _, err = w.Finish([32]byte{1}); err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(status)
	return err
}

// peakRSS reads VmHWM, in KiB, from a process's status. Unlike ru_maxrss it
// does not remember the process that started this one.
func peakRSS(status string) (kib int64, err error) {
	_, rest, ok := strings.Cut(status, "VmHWM:")
	if !ok {
		return 0, fmt.Errorf("no VmHWM in %q", status)
	}
	_, err = fmt.Sscan(rest, &kib)
	return kib, err
}

// TestConversionMemory bounds the memory of a process that converts a layer:
// it grows with entries, not with contents.
func TestConversionMemory(t *testing.T) {
	tests := []struct {
		name        string
		files       int
		size        int64
		maxRSS      int64 // MiB
		maxRSSRacey int64 // the race detector's shadow memory included
	}{
		{"100,000 files", 100_000, 100, 150, 600},
		{"large files", 2, 100 << 20, 60, 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "layer.ext4")
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), memoryHelper+"="+image)
			var status strings.Builder
			cmd.Stdout, cmd.Stderr = &status, os.Stderr
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			werr := writeManyFiles(in, tt.files, tt.size)
			in.Close()
			if err := cmd.Wait(); err != nil || werr != nil {
				t.Fatal(err, werr)
			}
			fsck(t, image)
			rss, err := peakRSS(status.String())
			if err != nil {
				t.Fatal(err)
			}
			rss >>= 10
			limit := tt.maxRSS
			if raceDetector {
				limit = tt.maxRSSRacey
			}
			t.Logf("%d MiB", rss)
			if rss > limit {
				t.Errorf("the conversion took %d MiB, more than %d", rss, limit)
			}
		})
	}
}
