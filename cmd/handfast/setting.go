package main

import (
	"path/filepath"
	"strings"

	"github.com/handfast/handfast/master/supervisor"
)

// list returns the values of a flag that is repeatable. Addresses and names of files may also be in
// one value, with commas between them, as in an environment variable. Variables may not: there is
// one in each line of HANDFAST_ENV.
func (v *values) list(name string) (all []string) {
	for _, value := range v.StringSlice(name) {
		if value == "" && v.from != nil && v.from[name] == "" {
			continue // of a variable that is set to nothing, which is as none
		}
		if name == "env" {
			all = append(all, value)
			continue
		}
		for item := range strings.SplitSeq(value, ",") {
			all = append(all, strings.TrimSpace(item))
		}
	}
	return all
}

// setting reads where and with which variables workers run.
func (v *values) setting(s *supervisor.Setting) {
	if path := v.String("directory"); path != "" {
		s.Directory = v.absolute("directory", path)
	}
	for _, path := range v.list("env-file") {
		s.EnvFiles = append(s.EnvFiles, v.absolute("env-file", path))
	}
	for _, variable := range v.list("env") {
		if strings.TrimSpace(variable) == "" {
			continue // an empty line of the environment variable
		}
		name, value, ok := strings.Cut(variable, "=")
		if !ok || !supervisor.IsVariable(name) || strings.Contains(value, "\x00") {
			v.fail("--env %q: want NAME=value", variable)
		}
		s.Env = append(s.Env, variable)
	}
}

// absolute returns a path that does not depend on where workers run. Links in it are not followed.
func (v *values) absolute(name, path string) string {
	if path == "" {
		v.fail("--%s %q: want a path", name, path)
		return ""
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		v.fail("--%s %q: %w", name, path, err)
	}
	return absolute
}

// canRun tells whether a worker's command, directory and files of variables are there.
func canRun(s *supervisor.Config) error {
	if err := s.Setting.Check(s.Rights); err != nil {
		return err
	}
	_, err := s.Setting.Find(s.Command[0])
	return err
}
