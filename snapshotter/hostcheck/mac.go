package hostcheck

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"howett.net/plist"
)

// minMacOS is the oldest macOS that the driver works with, by its first number.
const minMacOS = 13

// entitlement is what lets a program make virtual machines.
const entitlement = "com.apple.security.virtualization"

// checkMac looks for what runs machines on macOS: its own framework, and a shim that it
// lets.
func (h *host) checkMac(ctx context.Context) []Finding {
	if d := h.cfg.Machine.Driver; d != "vz" {
		return []Finding{fail(`set machine.driver = "vz"`, "virtual machine monitor: machine.driver %q does not exist on macOS", d)}
	}
	found := []Finding{h.sys.mac.checkVersion(), h.sys.mac.checkHypervisor(), h.sys.mac.checkSignature(ctx)}
	if h.cfg.Machine.Translate {
		found = append(found, h.sys.mac.checkRosetta()...)
	}
	return found
}

// checkRosetta looks for what runs programs for amd64, which Apple silicon alone needs.
func (m mac) checkRosetta() []Finding {
	switch supported, installed := m.rosetta(); {
	case !supported:
		return nil
	case !installed:
		return []Finding{warn("run: softwareupdate --install-rosetta", "Rosetta: it is not installed, so images for amd64 do not run")}
	}
	return []Finding{ok("Rosetta: images for amd64 run")}
}

func (m mac) checkVersion() Finding {
	version, err := m.version()
	if err != nil {
		return warn("see that it is "+strconv.Itoa(minMacOS)+" or newer (sw_vers)", "macOS: its version is not known: %s", reason(err))
	}
	first, _, _ := strings.Cut(version, ".")
	switch n, err := strconv.Atoi(first); {
	case err != nil:
		return warn("see that it is "+strconv.Itoa(minMacOS)+" or newer (sw_vers)", "macOS: the version %q cannot be compared", version)
	case n < minMacOS:
		return fail(fmt.Sprintf("update to macOS %d or newer", minMacOS), "macOS: %s is older than %d", version, minMacOS)
	}
	return ok("macOS: version %s", version)
}

func (m mac) checkHypervisor() Finding {
	able, err := m.hypervisor()
	switch {
	case err != nil:
		return warn("run: sysctl kern.hv_support", "virtual machine monitor: macOS does not say whether it can run machines: %s", reason(err))
	case !able:
		return fail("use a Mac that is no virtual machine itself, or whose host allows nested ones", "virtual machine monitor: this system cannot run virtual machines (kern.hv_support)")
	}
	return ok("virtual machine monitor: Virtualization.framework")
}

// checkSignature looks whether the shim is signed, and may make machines.
func (m mac) checkSignature(ctx context.Context) Finding {
	path, err := m.shim()
	if err != nil {
		return fail("run: sudo make install", "signature: %s is not in PATH", shimBinary)
	}
	sign := "run: codesign --sign - --force --entitlements config/applevm.entitlements " + path
	if _, text, err := m.codesign(ctx, "--verify", "--strict", path); err != nil {
		switch {
		case ctx.Err() != nil:
			return fail("see why codesign hangs", "signature: codesign says nothing of %s in time", path)
		case strings.Contains(text, "not signed at all"):
			return fail(sign, "signature: %s is not signed", path)
		}
		return fail(sign, "signature: the signature of %s is not valid: %s", path, lastLine(text, err))
	}
	out, text, err := m.codesign(ctx, "--display", "--entitlements", "-", "--xml", path)
	if err != nil {
		return fail(sign, "signature: the entitlements of %s cannot be read: %s", path, lastLine(text, err))
	}
	if has, err := entitled(out); err != nil {
		return fail(sign, "signature: the entitlements of %s cannot be read: %v", path, err)
	} else if !has {
		return fail(sign, "signature: %s lacks the entitlement %s, without which macOS refuses machines", path, entitlement)
	}
	return ok("signature: %s may make machines", path)
}

// entitled looks for the entitlement in a property list; one that is empty has none.
func entitled(list string) (bool, error) {
	if list = strings.TrimSpace(strings.TrimRight(list, "\x00")); list == "" {
		return false, nil
	}
	var all map[string]any
	if _, err := plist.Unmarshal([]byte(list), &all); err != nil {
		return false, err
	}
	return all[entitlement] == true, nil
}

// lastLine is a program's last word, or how it ended.
func lastLine(text string, err error) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if last := lines[len(lines)-1]; last != "" {
		return last
	}
	return err.Error()
}

// chown is a command that gives a directory to a user.
func chown(uid int, path string) string { return fmt.Sprintf("run: sudo chown -R %d '%s'", uid, path) }
