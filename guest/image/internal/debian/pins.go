package debian

import "fmt"

// snapshot is Debian's archive of all that it ever published, as it was at the
// given time: what is pinned must not vanish when a newer version comes.
const snapshot = "https://snapshot.debian.org/archive/debian-security/20261123T000000Z/pool/updates/main/l/"

// pins are the packages for hosts without apt, by architecture and name; a
// metapackage's name stands for the package it depends on.
var pins = map[[2]string]Package{
	{"amd64", "linux-image-cloud-amd64"}: {
		Name: "linux-image-6.1.0-56-cloud-amd64", Arch: "amd64",
		URL:    snapshot + "linux-signed-amd64/linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb",
		SHA256: "e7d02b943971edcb8790e256c02cfab3bca6c3d37c1bf25392a57c71300615ee",
	},
	{"arm64", "linux-image-cloud-arm64"}: {
		Name: "linux-image-6.1.0-56-cloud-arm64", Arch: "arm64",
		URL:    snapshot + "linux-signed-arm64/linux-image-6.1.0-56-cloud-arm64_6.1.192-2_arm64.deb",
		SHA256: "481ab54a27246579aadeb372315c56de02f2fe0cba4e09b387946269fff2f415",
	},
}

func pinned(arch, name string) (Package, error) {
	p, ok := pins[[2]string{arch, name}]
	if !ok {
		return Package{}, fmt.Errorf("package %s (%s) can only be fetched with apt: use a Debian machine or container", name, arch)
	}
	return p, nil
}
