package agent

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
	"github.com/applevm/applevm/guest/modules"
)

const (
	// translationsDir is where the daemon keeps translations, on the disk that takes the container's
	// changes, beside these.
	translationsDir = "translations"
	// daemonUser runs the daemon, which reads what containers run: nobody.
	daemonUser = 65534
	// daemonTimeout is how long the daemon may take until it has its socket.
	daemonTimeout = 10 * time.Second
)

// translator runs the programs of another architecture in all containers of the machine.
type translator struct {
	arch   string // GOARCH's name; empty if there is none
	daemon string // the program that keeps translations; it need not be there
}

// setTranslator has the kernel run programs of another architecture by an interpreter that the
// host shares. Every container's are run by it from then on: it is opened here, so that no
// container needs to have it (flag F of Documentation/admin-guide/binfmt-misc.rst).
func (a *Agent) setTranslator(t *guestv1.Translator) error {
	if t.GetShare() == "" {
		return nil
	}
	a.translatorMu.Lock()
	defer a.translatorMu.Unlock()
	if a.translator.arch != "" {
		return nil
	}
	rule, err := binfmtRule(t.GetArch())
	if err != nil {
		return err
	}
	if !isFileName(t.GetProgram()) || t.GetDaemon() != "" && !isFileName(t.GetDaemon()) {
		return invalid("%q or %q is no name of a file", t.GetProgram(), t.GetDaemon())
	}
	dir := filepath.Join(a.opts.Dir, "translator")
	if err := mountShare(&guestv1.Share{Tag: t.GetShare()}, dir); err != nil {
		return err
	}
	if err := register(filepath.Join(a.opts.Dir, "binfmt"), fmt.Sprintf(rule, filepath.Join(dir, t.GetProgram()))); err != nil {
		return errors.Join(fmt.Errorf("have the kernel run programs for %s: %w", t.GetArch(), err), unix.Unmount(dir, 0))
	}
	a.translator = translator{arch: t.GetArch()}
	if t.GetDaemon() != "" {
		a.translator.daemon = filepath.Join(dir, t.GetDaemon())
	}
	return nil
}

func isFileName(s string) bool {
	return filepath.IsLocal(s) && s != "." && !strings.ContainsAny(s, "/:")
}

// register mounts binfmt_misc at dir and gives it a rule.
func register(dir, rule string) error {
	if err := modules.LoadAll(filepath.Join(modules.Dir, modules.Binfmt)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := unix.Mount("binfmt_misc", dir, "binfmt_misc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount binfmt_misc: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "register"), []byte(rule), 0)
}

// binfmtRule is the rule for programs of an architecture, with a verb for the interpreter's path:
// little-endian 64-bit ELF files, executable or shared (e_type), of any ABI of System V's or
// Linux's kind. C has set-ID programs get the IDs of their own, not the interpreter's.
func binfmtRule(arch string) (string, error) {
	machine, ok := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]
	if !ok || arch == hostArch {
		return "", invalid("no translator is for %q here", arch)
	}
	escaped := func(b []byte) string {
		var s strings.Builder
		for _, c := range b {
			fmt.Fprintf(&s, `\x%02x`, c)
		}
		return s.String()
	}
	magic := slices.Concat([]byte(elf.ELFMAG), []byte{byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}, make([]byte, 9),
		[]byte{byte(elf.ET_EXEC), 0, byte(machine), 0})
	mask := slices.Repeat([]byte{0xff}, len(magic))
	mask[elf.EI_OSABI], mask[elf.EI_ABIVERSION] = 0, 0
	mask[16] = 0xfe // ET_EXEC is 2, ET_DYN 3
	return ":translator:M::" + escaped(magic) + ":" + escaped(mask) + ":%s:CF", nil
}

// checkArch returns an error that says so if the kernel cannot run p's program for what it is
// built for. foreign says that the translator runs it.
func (c *container) checkArch(p *specs.Process) (foreign bool, err error) {
	built := programArch(c.rootfs.path, p)
	if built == "" || built == hostArch || built == runsHere[hostArch] {
		return false, nil
	}
	c.agent.translatorMu.Lock()
	arch := c.agent.translator.arch
	c.agent.translatorMu.Unlock()
	if built == arch {
		return true, nil
	}
	remedy := "pull the image for linux/" + hostArch
	if t := c.translator; t.GetArch() == built && t.GetMissing() != "" {
		remedy += ", or " + t.GetMissing()
	}
	return false, fmt.Errorf("unable to start container process: exec: %q: exec format error: it is built for %s and this machine is %s; %s",
		p.Args[0], built, hostArch, remedy)
}

// keepTranslations starts the daemon that keeps what the translator has done, if there is one,
// for this container alone: what one container's programs were made into is not for others.
// They are kept with the container's changes, or in memory where it makes none.
func (c *container) keepTranslations(spec *specs.Spec, socket string) error {
	c.agent.translatorMu.Lock()
	program := c.agent.translator.daemon
	c.agent.translatorMu.Unlock()
	if _, err := os.Stat(program); err != nil || !filepath.IsAbs(socket) {
		return nil //nolint:nilerr // an older macOS has none
	}
	dir := filepath.Join(c.dir, translationsDir)
	if c.rootfs.changes != "" {
		dir = filepath.Join(c.rootfs.changes, translationsDir)
	}
	uds := filepath.Join(dir, "uds") // where the daemon makes its socket
	for _, d := range []string{dir, uds} {
		if err := os.Mkdir(d, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		if err := os.Lchown(d, daemonUser, daemonUser); err != nil {
			return err
		}
	}
	own := filepath.Join(uds, filepath.Base(socket))
	if err := os.Remove(own); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	d, err := startDaemon(c.agent.reaper, program, dir)
	if err != nil {
		return fmt.Errorf("start the daemon that keeps translations: %w", err)
	}
	c.daemon = d
	go d.openTo(own)
	spec.Mounts = append(spec.Mounts, specs.Mount{
		Destination: filepath.Dir(socket), Type: "bind", Source: uds, Options: []string{"bind", "ro", "nosuid", "nodev", "noexec"},
	})
	return nil
}

// daemon is a process of the agent's own.
type daemon struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func startDaemon(r *reaper, program, dir string) (*daemon, error) {
	cmd := exec.Command(program, "daemon", dir)
	cmd.Dir, cmd.Env = "/", []string{"HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: daemonUser, Gid: daemonUser}}
	end := r.starting()
	defer end()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r.own(cmd.Process.Pid)
	d := &daemon{cmd, make(chan struct{})}
	go func() {
		defer close(d.done)
		err := cmd.Wait()
		r.disown(cmd.Process.Pid)
		logrus.Debugf("the daemon that keeps translations has ended: %v", err)
	}()
	return d, nil
}

// openTo lets every user connect to the daemon's socket once it is there.
func (d *daemon) openTo(socket string) {
	for end := time.Now().Add(daemonTimeout); time.Now().Before(end); {
		var st unix.Stat_t
		if err := unix.Lstat(socket, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
			if err := os.Chmod(socket, 0o666); err != nil {
				logrus.Warnf("translations are not kept: %v", err)
			}
			return
		}
		select {
		case <-d.done:
			logrus.Warn("translations are not kept: the daemon for that has ended")
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	logrus.Warnf("translations are not kept: the daemon for that has no socket after %v", daemonTimeout)
}

// stop ends the daemon. It may be repeated.
func (d *daemon) stop() {
	if d != nil {
		_ = d.cmd.Process.Kill() // it may have ended
		<-d.done
	}
}
