package plan

import (
	"errors"
	"strings"
	"testing"

	"github.com/applevm/applevm/config"
	"github.com/applevm/applevm/vmm"
)

func TestTranslator(t *testing.T) {
	amd64 := vmm.Translation{Arch: "amd64", Program: "run", Daemon: "keep"}
	missing := errors.Join(errors.New("install it"), vmm.ErrNoTranslator)
	for name, tt := range map[string]struct {
		annotation    string
		off           bool
		host          Translator
		share         string
		missing, fail string
	}{
		"there":                    {host: Translator{amd64, nil}, share: vmm.TranslatorTag},
		"another host":             {},
		"another host, asked for":  {annotation: "true"},
		"off":                      {off: true, host: Translator{amd64, nil}, missing: "set machine.translate in the configuration to true"},
		"off, asked for":           {off: true, annotation: "true", host: Translator{amd64, nil}, share: vmm.TranslatorTag},
		"not for this container":   {annotation: "false", host: Translator{amd64, nil}, missing: "set annotation dev.applevm.translate to true"},
		"not installed":            {host: Translator{amd64, missing}, missing: "install it"},
		"the framework's error":    {host: Translator{amd64, errors.New("no answer")}, fail: "no answer"},
		"off, the framework fails": {off: true, host: Translator{amd64, errors.New("no answer")}, missing: "set machine.translate"},
		"no boolean":               {annotation: "maybe", host: Translator{amd64, nil}, fail: "use true or false"},
	} {
		t.Run(name, func(t *testing.T) {
			a := map[string]string{}
			if tt.annotation != "" {
				a[AnnotationTranslate] = tt.annotation
			}
			got, err := translator(a, config.Machine{Translate: !tt.off}, tt.host)
			if tt.fail != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fail) {
					t.Errorf("got %v, want %q", err, tt.fail)
				}
				return
			}
			if err != nil || got.GetShare() != tt.share || !strings.Contains(got.GetMissing(), tt.missing) || (tt.missing == "") != (got.GetMissing() == "") {
				t.Errorf("got %v, %v", got, err)
			}
			if got != nil && got.GetArch() != tt.host.Arch {
				t.Errorf("for %q", got.GetArch())
			}
		})
	}
}
