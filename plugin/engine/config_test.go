package engine_test

import (
	"slices"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/plugin/engine"
)

// TestSchemaSaysWhatIsAllowed: of every field whose values or bounds the schema tells, the configuration is accepted with
// each of them and refused with another.
func TestSchemaSaysWhatIsAllowed(t *testing.T) {
	words := map[string]func(*plugin.Config) *string{
		"repository.compression": func(c *plugin.Config) *string { return &c.Repository.Compression },
		"repository.chunking":    func(c *plugin.Config) *string { return &c.Repository.Chunking },
		"diskCompression":        func(c *plugin.Config) *string { return &c.DiskCompression },
	}
	numbers := map[string]func(*plugin.Config) *int{
		"repository.packSize": func(c *plugin.Config) *int { return &c.Repository.PackSize },
	}
	var e engine.Engine
	fields, err := e.Schema(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	refused := func(path string, set func(*plugin.Config)) bool {
		t.Helper()
		c := plugin.Config{Repository: plugin.RepositoryConfig{Location: "/repository", Password: "password"}}
		set(&c)
		said, err := e.Validate(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(said, func(d plugin.Diagnostic) bool { return d.Object == path })
	}
	told := 0
	for _, f := range fields {
		if len(f.Values) > 0 {
			told++
			at := words[f.Path]
			if at == nil {
				t.Errorf("%s has values that this test does not try", f.Path)
				continue
			}
			for _, v := range append(slices.Clone(f.Values), "", "nonsense") {
				if got := refused(f.Path, func(c *plugin.Config) { *at(c) = v }); got != (v == "nonsense") {
					t.Errorf("%s = %q: refused: %v", f.Path, v, got)
				}
			}
		}
		if f.Min != 0 || f.Max != 0 {
			told++
			at := numbers[f.Path]
			if at == nil {
				t.Errorf("%s has bounds that this test does not try", f.Path)
				continue
			}
			for n, bad := range map[int]bool{int(f.Min) - 1: true, int(f.Min): false, int(f.Max): false, int(f.Max) + 1: true, 0: false} {
				if got := refused(f.Path, func(c *plugin.Config) { *at(c) = n }); got != bad {
					t.Errorf("%s = %d: refused: %v", f.Path, n, got)
				}
			}
		}
	}
	if told != len(words)+len(numbers) {
		t.Errorf("the schema tells values or bounds of %d fields, want %d", told, len(words)+len(numbers))
	}
}
