package plan

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/internal/shortdir"
	"github.com/applevm/applevm/network/lan"
	"github.com/applevm/applevm/network/tapns"
	"github.com/applevm/applevm/network/usernet"
)

func TestNetworkMode(t *testing.T) {
	own := []specs.LinuxNamespace{{Type: specs.NetworkNamespace}}
	joinedNS := []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/netns/x"}}
	for _, tt := range []struct {
		name        string
		annotations map[string]string
		namespaces  []specs.LinuxNamespace
		fallback    string
		user        bool
		cni         int
		err         string
	}{
		{name: "by default", namespaces: own, fallback: "user", user: true},
		{name: "by default, none", namespaces: own, fallback: "none"},
		{name: "the host's", fallback: "none", user: true},
		{name: "annotation", annotations: map[string]string{AnnotationNetwork: "none"}, fallback: "user"},
		{name: "annotation and own namespace", annotations: map[string]string{AnnotationNetwork: "user"}, namespaces: own, fallback: "none", user: true},
		{name: "the client's", annotations: map[string]string{AnnotationNetwork: "bridge"}, namespaces: own, fallback: "none", err: `network "bridge" (annotation dev.applevm.network) is the client's to give`},
		{name: "no name", annotations: map[string]string{AnnotationNetwork: "../blue"}, namespaces: own, fallback: "none", err: `network "../blue" (annotation dev.applevm.network) has no name of`},
		{name: "nerdctl's none", annotations: map[string]string{"nerdctl/networks": `["none"]`}, namespaces: own, fallback: "user"},
		{name: "nerdctl's host", annotations: map[string]string{"nerdctl/networks": `["host"]`}, fallback: "none", user: true},
		{name: "nerdctl's bridge", annotations: map[string]string{"nerdctl/networks": `["bridge"]`}, namespaces: own, fallback: "user", cni: 1},
		{name: "nerdctl's own", annotations: map[string]string{"nerdctl/networks": `["blue","red"]`}, namespaces: own, fallback: "user", cni: 2},
		{name: "one by its path", namespaces: joinedNS, fallback: "user", cni: 2},
		{name: "one by its path, of nerdctl's", annotations: map[string]string{"nerdctl/networks": `["ns:/run/netns/x"]`}, namespaces: joinedNS, fallback: "user", cni: 2},
		{name: "annotation over a path", annotations: map[string]string{AnnotationNetwork: "user"}, namespaces: joinedNS, fallback: "none", user: true},
		{name: "too many", annotations: map[string]string{"nerdctl/networks": `["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"]`}, namespaces: own, fallback: "user", err: "17 networks"},
		{name: "another container's", annotations: map[string]string{"nerdctl/networks": `["container:abc"]`}, namespaces: own, fallback: "user", err: "the network of another container (container:abc) cannot be joined"},
		{name: "annotation over nerdctl's", annotations: map[string]string{"nerdctl/networks": `["none"]`, AnnotationNetwork: "user"}, namespaces: own, fallback: "none", user: true},
		{name: "ports without a network", annotations: map[string]string{AnnotationPublish: "80:80"}, namespaces: own, fallback: "none", err: "has no network (network.default in the configuration)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := input(t, func(s *specs.Spec) {
				s.Annotations = tt.annotations
				s.Linux.Namespaces = tt.namespaces
			})
			in.Network = config.Default().Network
			in.Network.Default = tt.fallback
			p, err := New(in)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v does not say %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.Network.User != tt.user || p.Network.CNI != tt.cni || (len(p.Machine.NICs) > 0) != (tt.user || tt.cni > 0) || (len(p.Container.Interfaces) == 1) != tt.user {
				t.Errorf("network %+v, NICs %v, interfaces %v", p.Network, p.Machine.NICs, p.Container.Interfaces)
			}
			if strings.Contains(string(p.Container.Spec), "/run/netns") {
				t.Errorf("the guest is told a path of the host: %s", p.Container.Spec)
			}
		})
	}
}

func TestUserNetwork(t *testing.T) {
	in := input(t, nil)
	in.Network = config.Default().Network
	p, err := New(in)
	if err != nil {
		t.Fatal(err)
	}
	i := p.Container.Interfaces[0]
	var routes []string
	for _, r := range i.Routes {
		routes = append(routes, r.Destination+" "+r.Gateway)
	}
	if got := strings.Join(append(append([]string{i.Name}, i.Addresses...), routes...), ", "); got !=
		"eth0, 192.168.127.2/24, fd61:7070:6c65:766d::2/64, 0.0.0.0/0 192.168.127.1, ::/0 fd61:7070:6c65:766d::1" {
		t.Errorf("the interface is %s", got)
	}
	if n := p.Machine.NICs[0]; n.MAC.String() != "02:61:76:6d:00:02" || n.MTU != 65520 || i.Mtu != 65520 || string(i.Mac) != string(n.MAC) {
		t.Errorf("NIC %+v", n)
	}
}

func TestEtcFiles(t *testing.T) {
	mine := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(mine, []byte("mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	resolv := mine + ".resolv"
	if err := os.WriteFile(resolv, []byte("# a stub\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.0.0.1\nsearch x.org"), 0o644); err != nil {
		t.Fatal(err)
	}
	contents := func(change func(*specs.Spec)) map[string]string {
		in := input(t, change)
		in.Network = config.Default().Network
		in.ReadFile = func(name string) ([]byte, error) {
			if name == "/etc/resolv.conf" {
				return []byte("nameserver 10.0.0.1\n  search\tcorp.example.org  example.org\noptions edns0 ndots:2\nsortlist 1.2.3.4\n"), nil
			}
			return os.ReadFile(name)
		}
		p, err := New(in)
		if err != nil {
			t.Fatal(err)
		}
		files, err := p.ReadFiles()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, f := range files {
			out[f.Path] = string(f.Content)
		}
		return out
	}
	got := contents(func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UTSNamespace})
	})
	for path, want := range map[string]string{
		"/etc/hostname":    "web\n",
		"/etc/resolv.conf": "nameserver 192.168.127.1\nsearch corp.example.org example.org\noptions edns0 ndots:2\n",
		"/etc/hosts": "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"192.168.127.2\tweb\nfd61:7070:6c65:766d::2\tweb\n" +
			"192.168.127.254\thost.applevm.internal\nfd61:7070:6c65:766d::fe\thost.applevm.internal\n",
	} {
		if got[path] != want {
			t.Errorf("%s is %q, want %q", path, got[path], want)
		}
	}
	// A client's own come first, but for nameservers that only the host reaches.
	got = contents(func(s *specs.Spec) {
		s.Hostname = "box"
		s.Mounts = []specs.Mount{
			{Destination: "/etc/hosts", Type: "bind", Source: mine, Options: []string{"rbind"}},
			{Destination: "/etc/resolv.conf", Type: "bind", Source: resolv, Options: []string{"rbind"}},
		}
	})
	if got["/etc/hosts"] != "mine\n" || got["/etc/hostname"] != "box\n" ||
		got["/etc/resolv.conf"] != "# a stub\nnameserver 192.168.127.1\nnameserver 10.0.0.1\nsearch x.org" || len(got) != 3 {
		t.Errorf("files are %q", got)
	}
	// Without a network the files are the image's.
	p, err := New(input(t, nil))
	if err != nil || len(p.Files) != 0 {
		t.Errorf("files %v, %v", p.Files, err)
	}
}

// shared is the input of a container in a network with others, and its names there.
func shared(t *testing.T, name string, change func(*specs.Spec)) (Input, *[]string) {
	t.Helper()
	in := input(t, func(s *specs.Spec) {
		s.Annotations = map[string]string{AnnotationNetwork: name}
		if change != nil {
			change(s)
		}
	})
	in.Network = config.Default().Network
	dir := shortdir.New(t)
	var names []string
	in.Join = func(name string, m lan.Member) (*lan.Port, error) {
		p, err := lan.Join(t.Context(), filepath.Join(dir, name), lan.Member{Subnet: m.Subnet})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		names = m.Names
		return lan.Join(t.Context(), filepath.Join(dir, name), m)
	}
	return in, &names
}

func TestSharedNetwork(t *testing.T) {
	mine := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(mine, []byte("nameserver 10.0.0.1\nsearch x.org y.org"), 0o644); err != nil {
		t.Fatal(err)
	}
	in, names := shared(t, "blue", func(s *specs.Spec) {
		s.Hostname = "DB"
		s.Annotations["nerdctl/name"] = "stack-db-1"
		s.Annotations[AnnotationAliases] = "db, cache"
		s.Mounts = []specs.Mount{{Destination: "/etc/resolv.conf", Type: "bind", Source: mine, Options: []string{"rbind"}}}
	})
	in.ID = strings.Repeat("0123456789abcdef", 4)
	p, err := New(in)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Network.Config.LAN.Close() })
	if got := strings.Join(*names, " "); got != "0123456789ab stack-db-1 db cache" {
		t.Errorf("its names are %q", got)
	}
	i := p.Container.Interfaces[0]
	if got := strings.Join(i.Addresses, " "); got != "192.168.127.3/24 fd61:7070:6c65:766d::3/64" {
		t.Errorf("the second container has %s", got)
	}
	if mac := p.Machine.NICs[0].MAC.String(); mac != "02:61:76:6d:00:03" || i.Routes[0].Gateway != "192.168.127.1" {
		t.Errorf("MAC address %s, gateway %s", mac, i.Routes[0].Gateway)
	}
	files, err := p.ReadFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		switch got := string(f.Content); f.Path {
		case "/etc/resolv.conf":
			if want := "nameserver 192.168.127.1\nnameserver 10.0.0.1\nsearch applevm.internal x.org y.org\n"; got != want {
				t.Errorf("%s is %q, want %q", f.Path, got, want)
			}
		case "/etc/hosts":
			if !strings.Contains(got, "192.168.127.3\tDB\n") {
				t.Errorf("%s is %q", f.Path, got)
			}
		}
	}
	in, _ = shared(t, "blue", func(s *specs.Spec) { s.Annotations[AnnotationAliases] = "a/b" })
	if _, err := New(in); err == nil || !strings.Contains(err.Error(), `"a/b" is no name of a machine`) {
		t.Errorf("got %v", err)
	}
}

func TestPublished(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "network-config.json")
	write := func(content string) {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text := func(list []usernet.Port) string {
		var out []string
		for _, p := range list {
			out = append(out, fmt.Sprintf("%s to %d", p, p.Guest))
		}
		return strings.Join(out, "; ")
	}
	for _, tt := range []struct {
		name        string
		annotations map[string]string
		file        string
		want, err   string
	}{
		{name: "none"},
		{name: "one", annotations: map[string]string{AnnotationPublish: "8080:80"}, want: "tcp port 0.0.0.0:8080 to 80"},
		{name: "several", annotations: map[string]string{AnnotationPublish: "127.0.0.1:8080:80, 53:53/udp,"}, want: "tcp port 127.0.0.1:8080 to 80; udp port 0.0.0.0:53 to 53"},
		{name: "IPv6", annotations: map[string]string{AnnotationPublish: "[::1]:8080:80/tcp"}, want: "tcp port [::1]:8080 to 80"},
		{name: "range", annotations: map[string]string{AnnotationPublish: "8000-8002:90-92"}, want: "tcp port 0.0.0.0:8000 to 90; tcp port 0.0.0.0:8001 to 91; tcp port 0.0.0.0:8002 to 92"},
		{name: "ranges of different sizes", annotations: map[string]string{AnnotationPublish: "8000-8001:90-92"}, err: "8000-8001"},
		{name: "no port of the host's", annotations: map[string]string{AnnotationPublish: "80"}, err: `"80": the host's port`},
		{name: "a range for one port", annotations: map[string]string{AnnotationPublish: "8000-8010:80"}, err: "8000-8010"},
		{name: "another protocol", annotations: map[string]string{AnnotationPublish: "80:80/sctp"}, err: "not sctp"},
		{name: "nonsense", annotations: map[string]string{AnnotationPublish: "x:y"}, err: `annotation dev.applevm.publish: "x:y"`},
		{name: "too many", annotations: map[string]string{AnnotationPublish: "1000-3000:1000-3000"}, err: "2001 published ports"},
		{name: "nerdctl", annotations: map[string]string{"nerdctl/state-dir": dir}, file: `{"portMappings":[{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":"0.0.0.0"},{"HostPort":53,"ContainerPort":53,"Protocol":"UDP","HostIP":"::1"}]}`,
			want: "tcp port 0.0.0.0:8080 to 80; udp port [::1]:53 to 53"},
		{name: "nerdctl without ports", annotations: map[string]string{"nerdctl/state-dir": dir}, file: `{}`},
		{name: "older nerdctl", annotations: map[string]string{"nerdctl/state-dir": filepath.Join(dir, "none"), "nerdctl/ports": `[{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":"127.0.0.1"}]`}, want: "tcp port 127.0.0.1:8080 to 80"},
		{name: "nerdctl's file is broken", annotations: map[string]string{"nerdctl/state-dir": dir}, file: `{`, err: file},
		{name: "nerdctl's port is none", annotations: map[string]string{"nerdctl/state-dir": dir}, file: `{"portMappings":[{"HostPort":70000,"ContainerPort":80}]}`, err: "70000"},
		{name: "nerdctl's port is 0", annotations: map[string]string{"nerdctl/state-dir": dir}, file: `{"portMappings":[{"HostPort":80,"ContainerPort":0}]}`, err: "the container's port"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			write(tt.file)
			got, err := published(tt.annotations, os.ReadFile)
			switch {
			case tt.err != "":
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v does not say %q", err, tt.err)
				}
			case err != nil:
				t.Error(err)
			case text(got) != tt.want:
				t.Errorf("got %s, want %s", text(got), tt.want)
			}
		})
	}
	// A file that cannot be read is no reason to publish nothing.
	_, err := published(map[string]string{"nerdctl/state-dir": dir}, func(string) ([]byte, error) { return nil, fs.ErrPermission })
	if err == nil || !strings.Contains(err.Error(), fs.ErrPermission.Error()) {
		t.Error(err)
	}
}

func TestNICsComeWithTheMachine(t *testing.T) {
	in := input(t, nil)
	in.Network = config.Default().Network
	in.Network.MTU = 1500
	p, err := New(in)
	if err != nil {
		t.Fatal(err)
	}
	if p.Machine.NICs[0].MTU != 1500 || p.Container.Interfaces[0].Mtu != 1500 || !slices.Equal(p.Container.Interfaces[0].Mac, p.Machine.NICs[0].MAC) {
		t.Errorf("NIC %+v, interface %v", p.Machine.NICs[0], p.Container.Interfaces[0])
	}
}

func TestJoinedInterfaces(t *testing.T) {
	cidr := func(s string) *net.IPNet {
		ip, n, err := net.ParseCIDR(s)
		if err != nil {
			t.Fatal(err)
		}
		n.IP = ip
		return n
	}
	n := Network{CNI: 1}
	got := n.Joined([]tapns.Interface{{
		Name: "eth0", MAC: net.HardwareAddr{2, 2, 2, 2, 2, 2}, MTU: 1400,
		Addresses: []*net.IPNet{cidr("10.4.0.5/24"), cidr("fd00::5/64")},
		Routes:    []tapns.Route{{Destination: cidr("0.0.0.0/0"), Gateway: net.ParseIP("10.9.0.1")}, {Destination: cidr("10.9.0.0/24")}},
	}})
	if len(got) != 1 {
		t.Fatal(got)
	}
	i := got[0]
	if i.Name != "eth0" || i.Mtu != 1400 || string(i.Mac) != string(n.nics()[0].MAC) || string(i.NewMac) != "\x02\x02\x02\x02\x02\x02" ||
		!slices.Equal(i.Addresses, []string{"10.4.0.5/24", "fd00::5/64"}) || len(i.Routes) != 2 ||
		i.Routes[0].Destination != "10.9.0.0/24" || i.Routes[1].Gateway != "10.9.0.1" {
		t.Errorf("got %v", i)
	}
}
