package agent

import "testing"

func TestParseSocketMount(t *testing.T) {
	for source, want := range map[string]*socketMount{
		"0:600:0:0":        {0, 0o600, 0, 0},
		"63:777:65534:12":  {63, 0o777, 65534, 12},
		"64:600:0:0":       nil,
		"0:1777:0:0":       nil,
		"0:600:0":          nil,
		"0:600:0:0:0":      nil,
		"-1:600:0:0":       nil,
		"0:600:4294967296": nil,
		"0:800:0:0":        nil,
		"../x:600:0:0":     nil,
		"":                 nil,
	} {
		got, err := parseSocketMount(source)
		if (err == nil) != (want != nil) || want != nil && got != *want {
			t.Errorf("%q: %+v, %v; want %+v", source, got, err, want)
		}
	}
}
