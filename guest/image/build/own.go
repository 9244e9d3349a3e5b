package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/applevm/applevm/guest/image/internal/cache"
	"github.com/applevm/applevm/guest/image/internal/debian"
	"github.com/applevm/applevm/guest/kernel"
)

// ownRecipe is the version of how BuildKernel builds; change it with what
// changes the result besides the options, the source and the compiler.
const ownRecipe = "1"

// target says how make is called for an architecture.
type target struct {
	arch   string // the kernel's name of the architecture
	cross  string // the prefix of a cross compiler's programs
	goal   string // what make builds
	output string // the file that it makes
}

var targets = map[string]target{
	"amd64": {"x86", "x86_64-linux-gnu-", "vmlinux", "vmlinux"},
	"arm64": {"arm64", "aarch64-linux-gnu-", "Image", "arch/arm64/boot/Image"},
}

// ownName returns the beginning of the cache entry's name: it stands for this
// checkout's options, whatever source and compiler were used with them.
func ownName(arch, options string) string {
	return fmt.Sprintf("kernel/own-%s-%s-", arch, digest(ownRecipe, options))
}

func digest(inputs ...string) string {
	h := sha256.New()
	for _, in := range inputs {
		fmt.Fprintf(h, "%d %s", len(in), in)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// builtKernel returns the kernel that BuildKernel has built last for arch from
// this checkout's options.
func builtKernel(arch string) (Kernel, bool, error) {
	options, err := kernel.Options(arch)
	if err != nil {
		return Kernel{}, false, err
	}
	root, err := cache.Dir()
	if err != nil {
		return Kernel{}, false, err
	}
	parent, prefix := filepath.Split(filepath.Join(root, ownName(arch, options)))
	entries, err := os.ReadDir(parent)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Kernel{}, false, err
	}
	var (
		newest string
		last   time.Time
	)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) || filepath.Ext(e.Name()) == cache.Partial {
			continue
		}
		dir := filepath.Join(parent, e.Name())
		if fi, err := os.Stat(filepath.Join(dir, kernelInfo)); err == nil && fi.ModTime().After(last) {
			newest, last = dir, fi.ModTime()
		}
	}
	if newest == "" {
		return Kernel{}, false, nil
	}
	k, err := readKernel(newest)
	return k, err == nil, err
}

// BuildKernel builds our own kernel for arch unless the cache has it, with as
// many jobs at a time as given (0: one per CPU). It takes about twenty minutes
// of CPU time; progress gets a line per step.
func BuildKernel(ctx context.Context, arch string, jobs int, progress io.Writer) (Kernel, error) {
	k, err := buildKernel(ctx, arch, jobs, progress)
	if err != nil {
		return Kernel{}, fmt.Errorf("build the guest kernel for %s: %w", arch, err)
	}
	return k, nil
}

func buildKernel(ctx context.Context, arch string, jobs int, progress io.Writer) (Kernel, error) {
	if err := checkArch(arch); err != nil {
		return Kernel{}, err
	}
	options, err := kernel.Options(arch)
	if err != nil {
		return Kernel{}, err
	}
	tools, err := findToolchain(ctx, arch)
	if err != nil {
		return Kernel{}, err
	}
	// The source is the same for all architectures.
	src, err := debian.Resolve(ctx, runtime.GOARCH, kernel.SourcePackage)
	if err != nil {
		return Kernel{}, err
	}
	name := ownName(arch, options) + digest(src.SHA256, tools.version)
	dir, err := cache.Make(ctx, name, func(dir string) error {
		b := kernelBuild{
			target: targets[arch], toolchain: tools, options: options,
			jobs: jobs, dir: filepath.Join(dir, "build"), progress: progress,
		}
		defer os.RemoveAll(b.dir)
		release, err := b.run(ctx, src, dir)
		if err != nil {
			return err
		}
		k := Kernel{Kind: KindOwn, Release: release, Source: src.Version(), VirtioMMIO: true}
		return errors.Join(os.RemoveAll(b.dir), k.write(dir))
	})
	if err != nil {
		return Kernel{}, err
	}
	return readKernel(dir)
}

// toolchain is the compiler and what belongs to it.
type toolchain struct {
	prefix  string // "" for the host's own
	version string
}

func findToolchain(ctx context.Context, arch string) (toolchain, error) {
	var t toolchain
	if arch != runtime.GOARCH {
		t.prefix = targets[arch].cross
	}
	out, err := exec.CommandContext(ctx, t.prefix+"gcc", "--version").Output()
	if err != nil {
		return t, fmt.Errorf("no compiler for %s (%sgcc): run `make deps`: %w", arch, t.prefix, err)
	}
	t.version, _, _ = strings.Cut(string(out), "\n")
	return t, nil
}

// kernelBuild is one build, in a directory of its own.
type kernelBuild struct {
	target
	toolchain
	options  string
	jobs     int
	dir      string
	progress io.Writer
	date     time.Time
}

// run builds the kernel of the source package and puts it and its .config into
// out. It returns the kernel's release.
func (b *kernelBuild) run(ctx context.Context, src debian.Package, out string) (string, error) {
	fmt.Fprintf(b.progress, "fetching and unpacking %s %s\n", src.Name, src.Version())
	if err := b.unpack(ctx, src); err != nil {
		return "", fmt.Errorf("unpack %s: %w", src.Name, err)
	}
	fmt.Fprintln(b.progress, "configuring")
	if err := b.configure(ctx); err != nil {
		return "", err
	}
	fmt.Fprintf(b.progress, "compiling %s with %s\n", b.goal, b.version)
	if err := b.make(ctx, b.goal); err != nil {
		return "", err
	}
	if err := b.install(ctx, out); err != nil {
		return "", err
	}
	release, err := os.ReadFile(filepath.Join(b.dir, "obj", "include", "config", "kernel.release"))
	return strings.TrimSpace(string(release)), err
}

// unpack puts the source tree into src below the build's directory. The package
// holds one file, a tar archive, which tar and xz take as it is read.
func (b *kernelBuild) unpack(ctx context.Context, src debian.Package) error {
	file, err := src.Fetch(ctx)
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	tr, err := debian.Data(f)
	if err != nil {
		return err
	}
	for {
		h, err := tr.Next()
		if err != nil {
			return fmt.Errorf("find the source archive: %w", err)
		}
		if strings.HasSuffix(h.Name, ".tar.xz") {
			b.date = h.ModTime
			break
		}
	}
	dir := filepath.Join(b.dir, "src")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "tar", "-xJf", "-", "--strip-components=1", "-C", dir)
	cmd.Stdin = tr
	return run(cmd)
}

func (b *kernelBuild) configure(ctx context.Context) error {
	asked := filepath.Join(b.dir, "asked.config")
	if err := os.WriteFile(asked, []byte(b.options), 0o644); err != nil {
		return err
	}
	if err := b.make(ctx, "KCONFIG_ALLCONFIG="+asked, "allnoconfig"); err != nil {
		return err
	}
	got, err := os.ReadFile(filepath.Join(b.dir, "obj", ".config"))
	if err != nil {
		return err
	}
	if m := kernel.Missing(b.options, string(got)); len(m) > 0 {
		return fmt.Errorf("kernel options in guest/kernel that did not take effect, because they do not exist or lack what they depend on: %s", strings.Join(m, ", "))
	}
	return nil
}

func (b *kernelBuild) make(ctx context.Context, args ...string) error {
	jobs := b.jobs
	if jobs <= 0 {
		jobs = runtime.NumCPU()
	}
	cmd := exec.CommandContext(ctx, "make", append([]string{
		"-s", "-j" + strconv.Itoa(jobs), "-C", filepath.Join(b.dir, "src"), "O=" + filepath.Join(b.dir, "obj"),
		"ARCH=" + b.arch, "CROSS_COMPILE=" + b.prefix,
		// Names in assertions must not depend on where the build is.
		"KCFLAGS=-ffile-prefix-map=" + b.dir + "=.", "KAFLAGS=-ffile-prefix-map=" + b.dir + "=.",
	}, args...)...)
	cmd.Env = append(os.Environ(),
		"LC_ALL=C", "KBUILD_BUILD_USER=applevm", "KBUILD_BUILD_HOST=applevm", "KBUILD_BUILD_VERSION=1",
		"KBUILD_BUILD_TIMESTAMP="+b.date.UTC().Format(time.UnixDate),
		// A make that called us must not rule the kernel's make.
		"MAKEFLAGS=", "MFLAGS=", "MAKELEVEL=")
	return run(cmd)
}

func (b *kernelBuild) install(ctx context.Context, out string) error {
	built := filepath.Join(b.dir, "obj", b.output)
	if b.arch == "x86" {
		// The symbol table is a third of the file, and the VMM would read it.
		if err := run(exec.CommandContext(ctx, b.prefix+"strip", "-s", built)); err != nil {
			return err
		}
	} else {
		image, err := os.ReadFile(built)
		if err == nil {
			err = checkImage(image)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(
		os.Rename(built, filepath.Join(out, kernelFile)),
		os.Rename(filepath.Join(b.dir, "obj", ".config"), filepath.Join(out, configFile)),
	)
}

// run runs a command; its error carries the end of what it printed.
func run(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// After a cancel, children that keep the pipe open are not waited for.
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		tail := lines[max(0, len(lines)-20):]
		return fmt.Errorf("%s: %w:\n%s", filepath.Base(cmd.Path), err, strings.Join(tail, "\n"))
	}
	return nil
}
