package plan

import (
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestNAT(t *testing.T) {
	in := Input{NAT: true, Namespace: "n", ID: "c", Bundle: "/b", ReadFile: os.ReadFile}
	spec := func(publish string) *specs.Spec {
		s := &specs.Spec{Linux: &specs.Linux{}, Annotations: map[string]string{AnnotationNetwork: "nat"}}
		if publish != "" {
			s.Annotations[AnnotationPublish] = publish
		}
		return s
	}
	n, err := network(spec(""), in)
	if err != nil || !n.NAT || n.User || n.HostPorts {
		t.Fatalf("%+v, %v", n, err)
	}
	nics := n.nics()
	if len(nics) != 1 || !nics[0].NAT || nics[0].MTU != 1500 || nics[0].MAC[0] != 2 {
		t.Errorf("%+v", nics)
	}
	for _, own := range []bool{true, false} {
		i := n.interfaces(own)
		if len(i) != 1 || !i[0].Dhcp || (i[0].ResolvConf == "/etc/resolv.conf") != own || len(i[0].Addresses) > 0 || string(i[0].Mac) != string(nics[0].MAC) {
			t.Errorf("%v", i)
		}
	}
	other := in
	other.ID = "d"
	if m, err := network(spec(""), other); err != nil || m.MAC.String() == n.MAC.String() {
		t.Errorf("another container has the address %v, %v", m.MAC, err)
	}
	if _, err := network(spec("8080:80"), in); err == nil || !strings.Contains(err.Error(), "cannot be published") {
		t.Errorf("published: %v", err)
	}
	in.NAT = false
	if _, err := network(spec(""), in); err == nil || !strings.Contains(err.Error(), "macOS's own") {
		t.Errorf("elsewhere: %v", err)
	}
}
