// Package record is what a shim leaves on disk while it runs, so that the
// process that containerd starts after a shim's crash finds all that must be
// cleaned up.
package record

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/applevm/applevm/internal/unixsocket"
	"github.com/applevm/applevm/network/lan"
	"github.com/applevm/applevm/network/tapns"
)

const (
	fileName   = "applevm.json"
	socketLink = "s"       // made by containerd's pkg/shim: a link to the socket directory
	address    = "address" // the shim's socket, read by containerd's pkg/shim too
)

// Record says what a running container holds outside its bundle.
type Record struct {
	// MachineDir is the machine's private directory.
	MachineDir string `json:"machineDir"`
	// LAN is the directory of the network that it shares with other containers
	// (package lan).
	LAN string `json:"lan,omitempty"`
	// NetNS is the path of a client's network namespace that it uses (package tapns).
	NetNS string `json:"netns,omitempty"`
	// Sockets are the container's sockets that are published on the host.
	Sockets []string `json:"sockets,omitempty"`
	// PID is the task's process identifier, the VMM's. 0 until the VMM runs.
	PID int `json:"pid,omitempty"`
	// Hooks is set once hooks that the poststop hooks undo may have run.
	Hooks bool `json:"hooks,omitempty"`
}

// Save stores r in the bundle, atomically.
func Save(bundle string, r Record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(bundle, fileName), b)
}

// Load reads the bundle's record; fs.ErrNotExist, wrapped, if there is none.
func Load(bundle string) (Record, error) {
	var r Record
	b, err := os.ReadFile(filepath.Join(bundle, fileName))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("%s: %w", filepath.Join(bundle, fileName), err)
	}
	return r, nil
}

// SaveAddress stores the address of the shim's socket in the bundle, where
// pkg/shim looks for the socket to remove.
func SaveAddress(bundle, addr string) error {
	return writeFile(filepath.Join(bundle, address), []byte(addr))
}

// LoadAddress reads what SaveAddress wrote.
func LoadAddress(bundle string) (string, error) {
	b, err := os.ReadFile(filepath.Join(bundle, address))
	return string(b), err
}

// MakeMachineDir makes the private directory (mode 0700) of the machine of
// container id. It lies in the directory of the shims' sockets, because bundles
// have paths too long for a socket's.
func MakeMachineDir(bundle, namespace, id string) (string, error) {
	dir, err := socketDir(bundle, "m", namespace, id, bundle)
	if err != nil {
		return "", err
	}
	// What is there is left over from a shim that died together with its host.
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("remove an old machine's directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the machine's directory: %w", err)
	}
	return dir, nil
}

// LANDir is the directory in which the shims of one user meet whose containers
// share the network name, in one namespace. It need not be there, its parent is.
func LANDir(bundle, namespace, name string) (string, error) {
	return socketDir(bundle, "n", namespace, name, strconv.Itoa(os.Geteuid()))
}

// socketDir names a directory with a short path, whose parent it makes.
func socketDir(bundle, kind string, parts ...string) (string, error) {
	parent, err := os.Readlink(filepath.Join(bundle, socketLink))
	if err != nil {
		return "", fmt.Errorf("find the directory for sockets: %w", err)
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, "/")))
	return filepath.Join(parent, kind+hex.EncodeToString(sum[:6])), nil
}

// Clean ends the shim that owns the bundle, if it still runs, and removes what
// the record names. It returns the record, empty if there was none.
func Clean(ctx context.Context, bundle string) (Record, error) {
	killErr := killOwner(ctx, bundle)
	r, err := Load(bundle)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if r.MachineDir != "" {
		err = errors.Join(err, os.RemoveAll(r.MachineDir))
	}
	if r.LAN != "" {
		err = errors.Join(err, lan.Clean(ctx, r.LAN))
	}
	if r.NetNS != "" {
		err = errors.Join(err, tapns.Undo(r.NetNS))
	}
	for _, path := range r.Sockets {
		_ = unixsocket.RemoveStale(path) // what others have put there stays
	}
	return r, errors.Join(killErr, err)
}

func writeFile(path string, b []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
