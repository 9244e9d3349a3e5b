// Package kernel holds the options of our own guest kernel. Package
// guest/image/build builds it, from the source package that Debian makes its
// own kernels from.
package kernel

import (
	"embed"
	"fmt"
	"regexp"
	"strings"
)

// SourcePackage is the Debian package that holds the kernel's source.
const SourcePackage = "linux-source-6.1"

//go:embed common.config amd64.config arm64.config
var configs embed.FS

// Options returns the options asked for on the given architecture, in the form
// that kconfig's KCONFIG_ALLCONFIG takes.
func Options(arch string) (string, error) {
	var b strings.Builder
	for _, name := range []string{"common", arch} {
		c, err := configs.ReadFile(name + ".config")
		if err != nil {
			return "", fmt.Errorf("no kernel options for %s: %w", arch, err)
		}
		b.Write(c)
	}
	return b.String(), nil
}

var option = regexp.MustCompile(`(?m)^(?:(CONFIG_\w+)=.*|# (CONFIG_\w+) is not set)$`)

// Missing returns the lines of asked that do not hold in config, a whole
// .config file: kconfig drops silently what does not exist, or whose
// dependencies are not met.
func Missing(asked, config string) []string {
	have := map[string]string{}
	for _, m := range option.FindAllStringSubmatch(config, -1) {
		have[m[1]+m[2]] = m[0]
	}
	var missing []string
	for _, m := range option.FindAllStringSubmatch(asked, -1) {
		got, ok := have[m[1]+m[2]]
		// An option that is switched off and does not exist is off, too.
		if got != m[0] && (ok || m[1] != "") {
			missing = append(missing, m[0])
		}
	}
	return missing
}
