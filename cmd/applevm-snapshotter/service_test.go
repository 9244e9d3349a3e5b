package main

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/applevm/applevm/config"
)

const installed = "/usr/local/bin/applevm-snapshotter"

// checkStart checks that a service starts the daemon with flags that it has.
func checkStart(t *testing.T, args []string) {
	t.Helper()
	if len(args) == 0 || args[0] != installed {
		t.Fatalf("it starts %q, not %s", args, installed)
	}
	cmd, rest, err := find(args[1:])
	if err != nil || cmd.name != "" {
		t.Fatalf("%q starts the command %q, %v, not the daemon", args, cmd.name, err)
	}
	t.Setenv(config.Env, "")
	c := call{command: cmd, args: rest}
	if _, err := c.parseConfig(new(flag.FlagSet)); err != nil {
		t.Errorf("%q: %v", args, err)
	}
}

// unit returns the settings of a section of the systemd unit.
func unit(t *testing.T, section string) map[string]string {
	t.Helper()
	b, err := os.ReadFile("../../config/systemd/applevm-snapshotter.service")
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	at := ""
	for l := range strings.Lines(string(b)) {
		l = strings.TrimSpace(l)
		name, value, ok := strings.Cut(l, "=")
		switch {
		case l == "" || l[0] == '#':
		case l[0] == '[':
			at = strings.Trim(l, "[]")
		case !ok:
			t.Errorf("%q is no setting", l)
		case at == section:
			settings[name] = value
		}
	}
	return settings
}

func TestSystemdUnit(t *testing.T) {
	service := unit(t, "Service")
	checkStart(t, strings.Fields(service["ExecStart"]))
	// The directories that the daemon uses by default are the unit's to write.
	if service["StateDirectory"] != "applevm" || service["RuntimeDirectory"] != "applevm" {
		t.Errorf("it may write to /var/lib/%s and /run/%s", service["StateDirectory"], service["RuntimeDirectory"])
	}

	// systemd's own judgement, where there is systemd. It wants the program to
	// exist.
	analyze, err := exec.LookPath("systemd-analyze")
	if errors.Is(err, exec.ErrNotFound) {
		return
	}
	b, err := os.ReadFile("../../config/systemd/applevm-snapshotter.service")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "applevm-snapshotter.service")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(b), installed, self)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
	// It judges what else is installed, too.
	if strings.Contains(string(out), "applevm") || err != nil && len(out) == 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// plistValue is a value of a property list: a string, a bool, an int64, a
// []any or a map[string]any.
func plistValue(d *xml.Decoder, start xml.StartElement) (any, error) {
	var list []any
	dict := map[string]any{}
	key, haveKey := "", false
	text := ""
	for {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		switch token := token.(type) {
		case xml.CharData:
			text += string(token)
		case xml.StartElement:
			v, err := plistValue(d, token)
			if err != nil {
				return nil, err
			}
			isKey := token.Name.Local == "key"
			switch {
			case start.Name.Local == "array" && !isKey:
				list = append(list, v)
			case start.Name.Local == "dict" && isKey != haveKey:
				if isKey {
					key = v.(string)
				} else if _, ok := dict[key]; ok {
					return nil, errors.New("key twice: " + key)
				} else {
					dict[key] = v
				}
				haveKey = isKey
			default:
				return nil, errors.New(token.Name.Local + " in " + start.Name.Local + " after key " + key)
			}
		case xml.EndElement:
			switch start.Name.Local {
			case "key", "string":
				return text, nil
			case "integer":
				return strconv.ParseInt(text, 10, 64)
			case "true", "false":
				return start.Name.Local == "true", nil
			case "array":
				return list, nil
			case "dict":
				if haveKey {
					return nil, errors.New("key without a value: " + key)
				}
				return dict, nil
			}
			return nil, errors.New("unknown element " + start.Name.Local)
		}
	}
}

// readPlist returns the dictionary of a property list.
func readPlist(t *testing.T, path string) map[string]any {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := xml.NewDecoder(f)
	var top any
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if start, ok := token.(xml.StartElement); ok && start.Name.Local != "plist" {
			if top, err = plistValue(d, start); err != nil {
				t.Fatal(err)
			}
		}
	}
	dict, ok := top.(map[string]any)
	if !ok {
		t.Fatalf("the list is %v", top)
	}
	return dict
}

func TestEntitlements(t *testing.T) {
	got := readPlist(t, "../../config/applevm.entitlements")
	if len(got) != 1 || got["com.apple.security.virtualization"] != true {
		t.Errorf("got %v", got)
	}
}

func TestLaunchdPlist(t *testing.T) {
	const path = "../../config/launchd/dev.applevm.snapshotter.plist"
	dict := readPlist(t, path)
	if got := dict["Label"]; got != strings.TrimSuffix(filepath.Base(path), ".plist") {
		t.Errorf("label %v is not the file's name", got)
	}
	var args []string
	list, _ := dict["ProgramArguments"].([]any)
	for _, a := range list {
		args = append(args, a.(string))
	}
	checkStart(t, args)
	if dict["RunAtLoad"] != true || dict["Umask"] != int64(0o077) {
		t.Errorf("RunAtLoad %v, Umask %v", dict["RunAtLoad"], dict["Umask"])
	}
}
