package config

const (
	defaultDriver  = "vz"
	defaultRoot    = "/usr/local/var/lib/applevm"
	defaultAddress = "/usr/local/var/run/applevm/snapshotter.sock"
)
