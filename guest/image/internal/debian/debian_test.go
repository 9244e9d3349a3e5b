package debian

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFetchWithoutApt fetches as hosts without apt do, by address and digest.
func TestFetchWithoutApt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	const content = "a package"
	requests := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		if r.URL.Path != "/pool/p_1%2b2_all.deb" && r.URL.Path != "/pool/p_1+2_all.deb" {
			http.NotFound(w, r)
			return
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	sum := sha256.Sum256([]byte(content))
	good := Package{Name: "p", Arch: "all", URL: srv.URL + "/pool/p_1%2b2_all.deb", SHA256: hex.EncodeToString(sum[:])}
	gone, changed := good, good
	gone.URL = srv.URL + "/pool/p_0_all.deb"
	changed.SHA256 = strings.Repeat("0", 64)

	t.Run("good", func(t *testing.T) {
		t.Setenv("XDG_CACHE_HOME", t.TempDir())
		requests = 0
		for range 2 {
			file, err := good.Fetch(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(file); err != nil || string(b) != content || filepath.Base(file) != "p_1+2_all.deb" {
				t.Errorf("%s holds %q, error %v", file, b, err)
			}
		}
		if requests != 1 || good.Version() != "1+2" {
			t.Errorf("%d requests, version %s", requests, good.Version())
		}
	})
	for _, tt := range []struct {
		name string
		pkg  Package
		says string
	}{{"not there", gone, "404"}, {"other content", changed, "SHA-256"}} {
		t.Run(tt.name, func(t *testing.T) {
			base := t.TempDir()
			t.Setenv("XDG_CACHE_HOME", base)
			_, err := tt.pkg.Fetch(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), "package p") {
				t.Errorf("error %v does not say %q", err, tt.says)
			}
			if left, _ := filepath.Glob(filepath.Join(base, "applevm", "deb", "*")); len(left) > 0 {
				t.Errorf("left in the cache: %v", left)
			}
		})
	}
}

func TestFirstError(t *testing.T) {
	const out = "W: some warning\nE: Unable to locate package x\nE: and another\n"
	if got := firstError(out); got != "E: Unable to locate package x" {
		t.Errorf("got %q", got)
	}
	if got := firstError("nothing known\n"); got != "nothing known" {
		t.Errorf("got %q", got)
	}
}
