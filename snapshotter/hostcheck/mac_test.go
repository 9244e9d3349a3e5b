package hostcheck

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/applevm/applevm/config"
)

// readyMac is a Mac that has all, with the answers of codesign that it has for a program
// that is signed with config/applevm.entitlements.
func readyMac(t *testing.T) *host {
	t.Helper()
	entitlements, err := os.ReadFile("../../config/applevm.entitlements")
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.Machine.Driver = "vz"
	return &host{cfg: cfg, sys: system{
		goos: "darwin", uid: 501,
		owner: func(string) (int, error) { return 501, nil },
		mac: mac{
			version:    func() (string, error) { return "14.6.1", nil },
			hypervisor: func() (bool, error) { return true, nil },
			rosetta:    func() (bool, bool) { return true, true },
			shim:       func() (string, error) { return "/usr/local/bin/" + shimBinary, nil },
			codesign: func(_ context.Context, args ...string) (string, string, error) {
				if args[0] == "--display" {
					return string(entitlements), "Executable=/x\n", nil
				}
				return "", "", nil
			},
		},
	}}
}

// codesigned answers for codesign: how it ends and what it says when it verifies, and the
// entitlements that it shows.
func codesigned(verify string, entitlements string) func(context.Context, ...string) (string, string, error) {
	return func(_ context.Context, args ...string) (string, string, error) {
		switch {
		case args[0] == "--display":
			return entitlements, "", nil
		case verify != "":
			return "", "/x: " + verify + "\nIn architecture: arm64\n", errors.New("exit status 1")
		}
		return "", "", nil
	}
}

func TestMac(t *testing.T) {
	const head = `<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "https://www.apple.com/DTDs/PropertyList-1.0.dtd"><plist version="1.0"><dict>`
	for _, tc := range []struct {
		name   string
		change func(h *host)
		level  Level
		what   string // begins with it
		has    string // the finding or its remedy have it
	}{
		{"all is there", func(*host) {}, OK, "signature: /usr/local/bin/containerd-shim-applevm-v1 may make machines", ""},
		{"version", func(*host) {}, OK, "macOS: version 14.6.1", ""},
		{"framework", func(*host) {}, OK, "virtual machine monitor: Virtualization.framework", ""},
		{"another driver", func(h *host) { h.cfg.Machine.Driver = "qemu" }, Fail, "virtual machine monitor: ", `machine.driver = "vz"`},
		{"oldest macOS", func(h *host) { h.sys.mac.version = func() (string, error) { return "13.0", nil } }, OK, "macOS: version 13.0", ""},
		{"old macOS", func(h *host) { h.sys.mac.version = func() (string, error) { return "12.7.6", nil } }, Fail, "macOS: 12.7.6 is older than 13", "update to macOS 13"},
		{"macOS that is no number", func(h *host) { h.sys.mac.version = func() (string, error) { return "Tahoe", nil } }, Warn, `macOS: the version "Tahoe"`, "sw_vers"},
		{"macOS that is mute", func(h *host) {
			h.sys.mac.version = func() (string, error) { return "", errors.New("no such name") }
		}, Warn, "macOS: its version is not known: no such name", "sw_vers"},
		{"no hypervisor", func(h *host) { h.sys.mac.hypervisor = func() (bool, error) { return false, nil } }, Fail, "virtual machine monitor: this system cannot", "nested"},
		{"hypervisor unknown", func(h *host) {
			h.sys.mac.hypervisor = func() (bool, error) { return false, errors.New("x") }
		}, Warn, "virtual machine monitor: macOS does not say", "kern.hv_support"},
		{"Rosetta", func(*host) {}, OK, "Rosetta: images for amd64 run", ""},
		{"no Rosetta", func(h *host) { h.sys.mac.rosetta = func() (bool, bool) { return true, false } }, Warn, "Rosetta: it is not installed", "softwareupdate --install-rosetta"},
		{"no Rosetta, and none asked for", func(h *host) {
			h.cfg.Machine.Translate = false
			h.sys.mac.rosetta = func() (bool, bool) { return true, false }
		}, OK, "macOS: version 14.6.1", ""},
		{"a Mac with an Intel processor", func(h *host) { h.sys.mac.rosetta = func() (bool, bool) { return false, false } }, OK, "macOS: version 14.6.1", ""},
		{"no shim", func(h *host) { h.sys.mac.shim = func() (string, error) { return "", fs.ErrNotExist } }, Fail, "signature: containerd-shim-applevm-v1 is not in PATH", "make install"},
		{"unsigned", func(h *host) { h.sys.mac.codesign = codesigned("code object is not signed at all", "") }, Fail, "signature: ", "is not signed"},
		{"signature that is broken", func(h *host) {
			h.sys.mac.codesign = codesigned("invalid signature (code or signature have been modified)", "")
		}, Fail, "signature: the signature of ", "codesign --sign - --force --entitlements config/applevm.entitlements /usr/local/bin/"},
		{"no entitlements", func(h *host) { h.sys.mac.codesign = codesigned("", "") }, Fail, "signature: ", "lacks the entitlement com.apple.security.virtualization"},
		{"other entitlements", func(h *host) {
			h.sys.mac.codesign = codesigned("", head+`<key>com.apple.security.hypervisor</key><true/></dict></plist>`)
		}, Fail, "signature: ", "lacks the entitlement"},
		{"entitlement that is refused", func(h *host) {
			h.sys.mac.codesign = codesigned("", head+`<key>com.apple.security.virtualization</key><false/></dict></plist>`)
		}, Fail, "signature: ", "lacks the entitlement"},
		{"entitlements that are no list", func(h *host) { h.sys.mac.codesign = codesigned("", "<plist") }, Fail, "signature: the entitlements of ", "cannot be read"},
		{"FIFOs of another user's", func(h *host) {
			h.sys.owner = func(p string) (int, error) {
				if p == fifoDirectory {
					return 0, nil
				}
				return 501, nil
			}
		}, Fail, "owner: /var/run/containerd/fifo belongs to uid 0, not to uid 501", "sudo chown -R 501 '/var/run/containerd/fifo'"},
		{"no directory for FIFOs", func(h *host) {
			h.sys.owner = func(p string) (int, error) {
				if p == fifoDirectory {
					return 0, fmt.Errorf("stat: %w", fs.ErrNotExist)
				}
				return 501, nil
			}
		}, Fail, "owner: /var/run/containerd/fifo, where clients make their FIFOs, does not exist", "kickstart"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := readyMac(t)
			tc.change(h)
			found := append(append(h.checkMac(t.Context()), h.checkOwners(t.Context())...), h.checkView(t.Context())...)
			var match []Finding
			for _, f := range found {
				if (f.Level == OK) != (f.Remedy == "") {
					t.Errorf("%v: only what is not well has a remedy, and all of it", f)
				}
				if strings.HasPrefix(f.What, tc.what) && strings.Contains(f.What+f.Remedy, tc.has) {
					match = append(match, f)
				} else if f.Level != OK {
					t.Errorf("besides: %v", f)
				}
			}
			if len(match) != 1 || match[0].Level != tc.level {
				t.Errorf("got %v, want one %v with %q and %q", found, tc.level, tc.what, tc.has)
			}
		})
	}
}

func TestFindShim(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if path, err := findShim(); err == nil {
		t.Errorf("found %s", path)
	}
	want := filepath.Join(dir, shimBinary)
	if err := os.WriteFile(want, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if path, err := findShim(); err != nil || path != want {
		t.Errorf("%s, %v", path, err)
	}
}
