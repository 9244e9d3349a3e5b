package plan

import (
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/network/lan"
)

// sharedName is what a shared network may be called.
var sharedName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// machineName is what a container can be found by in a shared network: the labels
// of a DNS name, and underscores, which clients allow.
var machineName = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_.-]{0,61}[a-z0-9_])?$`)

// maxAliases bounds the names that one container asks for.
const maxAliases = 64

// share joins the user network to those of other containers.
func (n Network) share(name, by string, s *specs.Spec, in Input) (Network, error) {
	if !sharedName.MatchString(name) {
		return n, invalid("the network %q (%s) has no name of at most 63 letters, digits, '.', '_' and '-'", name, by)
	}
	names, err := machineNames(s, in)
	if err != nil {
		return n, err
	}
	if n.Config.LAN, err = in.Join(name, lan.Member{Names: names, Subnet: n.Addresses.Guest[0].Masked()}); err != nil {
		return n, unavailable("the network %q (%s): %w", name, by, err)
	}
	n.Shared = true
	n.Addresses, err = n.Config.Addresses()
	return n, err
}

// machineNames are those by which other containers find the container: its
// identifier, as far as it is no number of nerdctl's too long for a name, its
// first 12 digits, as clients show it, nerdctl's name, the hostname (with compose, the
// service's name), and those that an annotation adds.
func machineNames(s *specs.Spec, in Input) ([]string, error) {
	asked := []string{in.ID, in.ID[:min(len(in.ID), 12)], s.Annotations[annotationNerdctlName], s.Hostname}
	aliases := strings.FieldsFunc(s.Annotations[AnnotationAliases], func(r rune) bool { return r == ',' || r == ' ' })
	if len(aliases) > maxAliases {
		return nil, invalid("annotation %s has %d names, more than %d", AnnotationAliases, len(aliases), maxAliases)
	}
	var out []string
	for i, name := range append(asked, aliases...) {
		name = strings.ToLower(name)
		switch {
		case machineName.MatchString(name):
			if !slices.Contains(out, name) {
				out = append(out, name)
			}
		case i >= len(asked):
			return nil, invalid("annotation %s: %q is no name of a machine", AnnotationAliases, name)
		}
	}
	return out, nil
}
