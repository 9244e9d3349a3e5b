// Package debian fetches Debian packages, for any architecture and without
// installing them, into the cache: with apt where there is one, else (macOS, other
// distributions) from pinned addresses. Either way the content is verified.
package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/applevm/applevm/guest/image/internal/cache"
)

// Package is one version of a Debian package for one architecture.
type Package struct {
	// Name is the package's name, Arch Debian's name of the architecture.
	Name, Arch string
	// URL is where its file is, SHA256 the file's digest in hexadecimal.
	URL, SHA256 string
}

// Resolve finds the package's newest version.
func Resolve(ctx context.Context, arch, name string) (Package, error) {
	if !haveApt() {
		return pinned(arch, name)
	}
	a, err := openApt(ctx, arch)
	if err != nil {
		return Package{}, err
	}
	return a.resolve(ctx, name)
}

// ResolveDependency finds the newest version of the package that name, a
// metapackage, depends on and whose name starts with prefix.
func ResolveDependency(ctx context.Context, arch, name, prefix string) (Package, error) {
	if !haveApt() {
		return pinned(arch, name)
	}
	a, err := openApt(ctx, arch)
	if err != nil {
		return Package{}, err
	}
	dep, err := a.dependency(ctx, name, prefix)
	if err != nil {
		return Package{}, err
	}
	return a.resolve(ctx, dep)
}

// Version returns the package's version, as its file's name has it.
func (p Package) Version() string {
	if f := strings.Split(p.file(), "_"); len(f) == 3 {
		return f[1]
	}
	return ""
}

func (p Package) file() string { return strings.ReplaceAll(path.Base(p.URL), "%2b", "+") }

// Fetch returns the path of the package's file in the cache, after fetching it
// if it is not there.
func (p Package) Fetch(ctx context.Context) (string, error) {
	dir, err := cache.Make(ctx, filepath.Join("deb", p.SHA256), func(dir string) error {
		file, err := p.download(ctx, dir)
		if err != nil {
			return err
		}
		return verify(file, p.SHA256)
	})
	if err != nil {
		return "", fmt.Errorf("fetch Debian package %s (%s): %w", p.Name, p.Arch, err)
	}
	return filepath.Join(dir, p.file()), nil
}

func (p Package) download(ctx context.Context, dir string) (string, error) {
	file := filepath.Join(dir, p.file())
	if !haveApt() {
		return file, get(ctx, p.URL, file)
	}
	a, err := openApt(ctx, p.Arch)
	if err != nil {
		return "", err
	}
	got, err := a.download(ctx, p.Name, dir)
	if err != nil {
		return "", err
	}
	// apt writes an epoch's colon as %3a and the like.
	return file, os.Rename(got, file)
}

// maxPackage bounds a download, in bytes: the kernel's source has 140 MB.
const maxPackage = 1 << 30

func get(ctx context.Context, url, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := io.Copy(f, io.LimitReader(resp.Body, maxPackage)); err != nil {
		return err
	} else if n == maxPackage {
		return fmt.Errorf("%s: more than %d bytes", url, maxPackage)
	}
	return f.Close()
}

func verify(file, want string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%s has SHA-256 %s, expected %s: try again, and report it if it stays so", filepath.Base(file), got, want)
	}
	return nil
}
