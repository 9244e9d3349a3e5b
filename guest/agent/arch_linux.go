package agent

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"path"
	"runtime"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// machines are the ELF machines of the architectures that images exist for, by
// the names that the OCI image spec gives them (GOARCH's).
var machines = map[elf.Machine]string{
	elf.EM_386:       "386",
	elf.EM_AARCH64:   "arm64",
	elf.EM_ARM:       "arm",
	elf.EM_LOONGARCH: "loong64",
	elf.EM_MIPS:      "mips",
	elf.EM_PPC64:     "ppc64le",
	elf.EM_RISCV:     "riscv64",
	elf.EM_S390:      "s390x",
	elf.EM_X86_64:    "amd64",
}

// runsHere are the architectures that a machine's kernel may run besides its own.
var runsHere = map[string]string{"amd64": "386", "arm64": "arm"}

// programArch returns the architecture that p's program, or the interpreter in its first
// line, is built for. For what is not found, not readable or no ELF it returns "": that is
// left to the kernel. Its own answer to another architecture would be a bare "exec format error"
// after the start.
func programArch(root string, p *specs.Process) string {
	for _, name := range candidates(p) {
		head, err := readLimit(root, name, maxHead)
		if err != nil {
			continue
		}
		if script, ok := bytes.CutPrefix(head, []byte("#!")); ok {
			line, _, _ := bytes.Cut(script, []byte("\n"))
			if f := strings.Fields(string(line)); len(f) > 0 && path.IsAbs(f[0]) {
				if head, err = readLimit(root, f[0], maxHead); err != nil {
					return ""
				}
			}
		}
		return elfArch(head)
	}
	return ""
}

// maxHead is how much of a program the kernel looks at (BINPRM_BUF_SIZE).
const maxHead = 256

// candidates returns the paths at which p's program may be, in order.
func candidates(p *specs.Process) []string {
	name := p.Args[0]
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			name = path.Join(p.Cwd, name)
		}
		return []string{name}
	}
	var list string
	for _, e := range p.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			list = v
		}
	}
	var names []string
	for _, d := range strings.Split(list, ":") {
		if path.IsAbs(d) {
			names = append(names, path.Join(d, name))
		}
	}
	return names
}

// elfArch returns the architecture that an ELF file whose first bytes are head
// is built for, "" if it is none or an unknown one.
func elfArch(head []byte) string {
	const machineOffset = 18 // e_machine follows e_ident[16] and e_type
	if len(head) < machineOffset+2 || !bytes.HasPrefix(head, []byte(elf.ELFMAG)) {
		return ""
	}
	var order binary.ByteOrder = binary.LittleEndian
	if elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	return machines[elf.Machine(order.Uint16(head[machineOffset:]))]
}

// hostArch is the machine's architecture.
const hostArch = runtime.GOARCH
