package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/applevm/applevm/guest/image/internal/cache"
	"github.com/applevm/applevm/guest/image/internal/debian"
)

const (
	agentPackage = "github.com/applevm/applevm/cmd/applevm-agent"
	// agentTags: seccomp for libcontainer's filters; runc_nocriu leaves out its
	// checkpoints, which the agent does not offer; the other two keep glibc's
	// resolver and user database out, which do not work in a static binary.
	agentTags = "seccomp,netgo,osusergo,runc_nocriu"
)

// triplets are Debian's names for the architectures' library directories.
var triplets = map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}

// BuildAgent compiles the agent for arch, linked statically, to the file out.
// It must be called in a directory of this module.
//
// The agent needs cgo, for libcontainer's namespace code and for libseccomp:
// see AgentEnv for what that takes.
func BuildAgent(ctx context.Context, arch, out string) error {
	env, err := AgentEnv(ctx, arch)
	if err != nil {
		return fmt.Errorf("build the agent for %s: %w", arch, err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-tags", agentTags, "-ldflags", "-s -w -linkmode external -extldflags -static",
		"-o", out, agentPackage)
	cmd.Env = append(os.Environ(), env...)
	if err := run(cmd); err != nil {
		return fmt.Errorf("build the agent for %s: %w", arch, err)
	}
	// Linkers take a shared library silently where there is no static one.
	_, err = readInit(out, arch)
	return err
}

// AgentEnv returns the environment variables with which the go command builds
// the agent for arch. On a machine of another architecture they name a cross
// compiler (Debian's gcc-aarch64-linux-gnu or gcc-x86-64-linux-gnu) and a
// directory in the cache into which libseccomp-dev for arch is unpacked, since
// Debian's cannot be installed beside the machine's own.
func AgentEnv(ctx context.Context, arch string) ([]string, error) {
	if err := checkArch(arch); err != nil {
		return nil, err
	}
	if runtime.GOOS != "linux" {
		return nil, errors.New("compiling the agent takes Linux: build it there and give it with -init")
	}
	env := []string{"GOOS=linux", "GOARCH=" + arch, "CGO_ENABLED=1"}
	if arch == runtime.GOARCH {
		return env, nil
	}
	cc := targets[arch].cross + "gcc"
	if _, err := exec.LookPath(cc); err != nil {
		return nil, fmt.Errorf("no cross compiler %s: run `make deps`: %w", cc, err)
	}
	root, err := sysroot(ctx, arch)
	if err != nil {
		return nil, fmt.Errorf("prepare libseccomp for %s: %w", arch, err)
	}
	usr := filepath.Join(root, "usr")
	lib := filepath.Join(usr, "lib", triplets[arch])
	return append(env,
		"CC="+cc,
		"CGO_CFLAGS=-O2 -g -I"+filepath.Join(usr, "include"),
		"CGO_LDFLAGS=-O2 -g -L"+lib,
		"PKG_CONFIG_LIBDIR="+filepath.Join(lib, "pkgconfig"),
		"PKG_CONFIG_SYSROOT_DIR="+root,
	), nil
}

// sysroot returns a directory in the cache that holds libseccomp's header,
// static library and pkg-config file for arch.
func sysroot(ctx context.Context, arch string) (string, error) {
	pkg, err := debian.Resolve(ctx, arch, "libseccomp-dev")
	if err != nil {
		return "", err
	}
	return cache.Make(ctx, filepath.Join("sysroot", arch+"-"+pkg.SHA256[:16]), func(dir string) error {
		file, err := pkg.Fetch(ctx)
		if err != nil {
			return err
		}
		return unpackDev(file, dir)
	})
}

// unpackDev unpacks the regular files below usr/include and usr/lib of a -dev
// package into dir. Its link to the shared library is left out.
func unpackDev(deb, dir string) error {
	f, err := os.Open(deb)
	if err != nil {
		return err
	}
	defer f.Close()
	tr, err := debian.Data(f)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(strings.TrimPrefix(h.Name, "./"))
		if h.Typeflag != tar.TypeReg || !strings.HasPrefix(name, "usr/include/") && !strings.HasPrefix(name, "usr/lib/") {
			continue
		}
		if err := unpackFile(root, name, tr); err != nil {
			return err
		}
	}
}

func unpackFile(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
