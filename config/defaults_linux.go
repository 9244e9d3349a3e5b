package config

const (
	defaultDriver  = "qemu"
	defaultRoot    = "/var/lib/applevm"
	defaultAddress = "/run/applevm/snapshotter.sock"
)
