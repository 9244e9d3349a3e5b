package agent

import (
	"strings"
	"testing"

	guestv1 "github.com/applevm/applevm/guest/api/v1"
)

// The rules are those that Apple ("Running Intel Binaries in Linux VMs with Rosetta") and QEMU
// (scripts/qemu-binfmt-conf.sh) give, but for the ABI's version, which is left open.
func TestBinfmtRule(t *testing.T) {
	const start, end = `:translator:M::\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x`,
		`\x00:\xff\xff\xff\xff\xff\xff\xff\x00\x00\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:%s:CF`
	for arch, want := range map[string]string{"amd64": start + "3e" + end, "arm64": start + "b7" + end, "riscv64": "", "": ""} {
		if arch == hostArch {
			want = ""
		}
		got, err := binfmtRule(arch)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %s, %v\nwant %s", arch, got, err, want)
		}
	}
}

// Nothing is mounted for a request that is not right.
func TestTranslatorsNames(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[hostArch]
	for _, tt := range []*guestv1.Translator{
		{Share: "t", Arch: hostArch, Program: "p"}, {Share: "t", Arch: other}, {Share: "t", Arch: other, Program: "../p"},
		{Share: "t", Arch: other, Program: "a:b"}, {Share: "t", Arch: other, Program: "p", Daemon: "d/e"}, {Share: "../t", Arch: other, Program: "p"},
	} {
		a := &Agent{opts: Options{Dir: t.TempDir()}}
		if err := a.setTranslator(tt); err == nil || !strings.Contains(err.Error(), `"`) {
			t.Errorf("%v: %v", tt, err)
		}
	}
	if err := (&Agent{}).setTranslator(&guestv1.Translator{Arch: other, Missing: "install it"}); err != nil {
		t.Error(err)
	}
}
