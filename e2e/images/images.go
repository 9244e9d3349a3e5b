// Package images makes the container images that demo, tests and bench run: a
// Debian from Debian's own packages, and small ones from given files. They are
// OCI archives, as `ctr image import` takes them.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Image describes an image to make.
type Image struct {
	// Ref is the name that import gives it, for instance "docker.io/library/debian:12".
	Ref string
	// Arch is the architecture, as Go names it.
	Arch string
	// User is the image's USER, empty for root.
	User string
	// Cmd is what runs where the client says nothing else.
	Cmd []string
	// Env is added to PATH.
	Env []string
	// Layers are uncompressed tar files, lowest first.
	Layers []string
}

// Write makes the archive path from img, atomically. Layers are compressed with
// gzip, as registries hold them.
func Write(path string, img Image) error {
	tag, err := name.NewTag(img.Ref)
	if err != nil {
		return err
	}
	base, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS:           "linux",
		Architecture: img.Arch,
		Config: v1.Config{
			User: img.User,
			Cmd:  img.Cmd,
			Env:  append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, img.Env...),
		},
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return err
	}
	for _, l := range img.Layers {
		layer, err := tarball.LayerFromFile(l, tarball.WithCompressionLevel(1))
		if err != nil {
			return fmt.Errorf("layer %s: %w", l, err)
		}
		if base, err = mutate.AppendLayers(base, layer); err != nil {
			return err
		}
	}
	tmp := path + ".tmp"
	defer os.Remove(tmp) // no effect after the rename
	if err := tarball.WriteToFile(tmp, tag, base); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// DebianRef is the name of Debian's image.
const DebianRef = "docker.io/library/debian:bookworm"

// debianUser adds a user and a supplementary group, for tests of USER.
const debianUser = `--customize-hook=chroot "$1" groupadd --gid 2000 extra; chroot "$1" useradd --uid 1000 --user-group --groups extra app`

// Debian makes, or finds in the cache, an archive of a Debian root that
// mmdebstrap builds from packages: about 100 MB, one layer, no USER.
func Debian(ctx context.Context) (string, error) {
	return debian(ctx, "debian-bookworm.tar", DebianRef, "procps")
}

// ServersRef is the name of Servers' image.
const ServersRef = "docker.io/library/servers:bookworm"

// Servers is Debian's image with nginx, Redis and its command line client.
func Servers(ctx context.Context) (string, error) {
	return debian(ctx, "servers-bookworm.tar", ServersRef, "procps,nginx-light,redis-server,redis-tools")
}

// WatchersRef is the name of Watchers' image.
const WatchersRef = "docker.io/library/watchers:bookworm"

// Watchers is Debian's image with programs that watch files: Node.js and inotifywait.
func Watchers(ctx context.Context) (string, error) {
	return debian(ctx, "watchers-bookworm.tar", WatchersRef, "procps,nodejs,inotify-tools")
}

// DevelopersRef is the name of Developers' image.
const DevelopersRef = "docker.io/library/developers:bookworm"

// Developers is Debian's image with PostgreSQL, its programs in PostgresBin, git and
// OpenSSH's client.
func Developers(ctx context.Context) (string, error) {
	return debian(ctx, "developers-bookworm.tar", DevelopersRef, "procps,postgresql-15,git,openssh-client")
}

// PostgresBin is the directory of PostgreSQL's programs in Developers.
const PostgresBin = "/usr/lib/postgresql/15/bin"

// debian makes an image with further packages.
func debian(ctx context.Context, file, ref, packages string) (string, error) {
	args := []string{
		"--variant=minbase", "--quiet", "--include=" + packages,
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		debianUser, "bookworm",
	}
	return cached(ctx, file, strings.Join(args, "\x00"), func(tmp, out string) error {
		root := filepath.Join(tmp, "root.tar")
		if err := mmdebstrap(ctx, append(args, root)...); err != nil {
			return err
		}
		return Write(out, Image{Ref: ref, Arch: hostArch, Cmd: []string{"bash"}, Layers: []string{root}})
	})
}

// mmdebstrap makes a root from Debian's packages.
func mmdebstrap(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap: %w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// WithUser makes a variant of Debian's image: the same layer, another USER.
func WithUser(ctx context.Context, archive, ref, user, dir string) (string, error) {
	img, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		return "", err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return "", err
	}
	c := cfg.Config
	c.User = user
	if img, err = mutate.Config(img, c); err != nil {
		return "", err
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "user.tar")
	return out, tarball.WriteToFile(out, tag, img)
}

// File is a file of a small image.
type File struct {
	Name    string
	Mode    int64
	Content []byte
}

// Layer writes a layer that holds files to path.
func Layer(path string, files ...File) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Name, Mode: f.Mode, Size: int64(len(f.Content))}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(f.Content); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// cached returns the file in the user's cache that make produced from inputs:
// it writes out, with the directory tmp for whatever else it needs.
func cached(ctx context.Context, file, inputs string, make func(tmp, out string) error) (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "applevm", "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(inputs + hostArch))
	ext := filepath.Ext(file)
	path := filepath.Join(dir, strings.TrimSuffix(file, ext)+"-"+hex.EncodeToString(sum[:6])+ext)
	unlock, err := lock(ctx, path+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tmp, err := os.MkdirTemp(dir, "new")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, "out"+ext)
	if err := make(tmp, out); err != nil {
		return "", fmt.Errorf("make %s: %w", file, err)
	}
	return path, os.Rename(out, path)
}

// Corrupt writes a copy of archive to path with bytes in the middle of its
// largest layer changed, names and sizes untouched.
func Corrupt(archive, path string) error {
	b, err := os.ReadFile(archive)
	if err != nil {
		return err
	}
	var at, size int64
	src := bytes.NewReader(b)
	r := tar.NewReader(src)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if h.Size > size {
			at, size = int64(len(b))-int64(src.Len()), h.Size
		}
	}
	for i := range int64(64) {
		b[at+size/2+i] ^= 0xff
	}
	return os.WriteFile(path, b, 0o644)
}
