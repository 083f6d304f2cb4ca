"""`albert-jax completion SHELL`: a script that completes commands, flags and config fields."""

import importlib
import pathlib
import shlex

from albert_jax.commands import COMMANDS, common, config_fields

SHELLS = ("bash", "zsh", "fish")


def main(argv: list[str]) -> None:
  """Prints the script; see `albert-jax completion --help`."""
  parser = common.parser(
    "completion",
    "Prints a script for tab completion of commands, flags, choices, config names and config fields. Add this line to\n"
    "~/.bashrc, or for zsh to ~/.zshrc; for fish, write the output to ~/.config/fish/completions/albert-jax.fish.",
    'eval "$(albert-jax completion bash)"',
  )
  parser.add_argument("shell", choices=SHELLS, help="which shell")
  args = parser.parse_args(argv)
  print({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](words()))


def words() -> dict[str, dict[str, list[str]]]:
  """Returns {command: {flag: its choices}} of all commands, from their own parsers; config fields are flags too."""
  fields = sorted({name for config in common.DOCUMENTED for name in config_fields.flat(common.load_config(config))})
  folder = pathlib.Path(importlib.import_module("albert_jax.configs").__path__[0])
  configs = sorted({path.stem for path in folder.glob("*.py")} - {"common", "__init__"} | {*common.DOCUMENTED})
  flags_of = {}
  for command in COMMANDS:
    flags = {}
    for action in common.parser_of(command)._actions:
      for flag in action.option_strings:
        if flag.startswith("--") and flag != "--config.FIELD":
          flags[flag] = [str(choice) for choice in action.choices or ()]
      if not action.option_strings and action.choices:
        flags |= {str(choice): [] for choice in action.choices}
    if "--config" in flags:
      flags["--config"] = configs
      flags |= {f"--config.{name}": [] for name in fields}
    flags_of[command] = flags
  return flags_of


def bash(commands: dict[str, dict[str, list[str]]]) -> str:
  """Returns the script for bash; values without choices complete as files do."""
  lines = [
    # A colon ends a word in bash, so the text before it is not repeated.
    "_albert_jax_values() {",
    '  COMPREPLY=($(compgen -W "$1" -- "${word#*=}"))',
    '  [[ $word != *:* ]] || COMPREPLY=("${COMPREPLY[@]#*:}")',
    "}",
    "_albert_jax() {",
    "  local line=${COMP_LINE:0:COMP_POINT} word words=()",
    '  word=${line##* }',
    "  COMPREPLY=()",
    f"  words={shlex.quote(' '.join(commands))}",
    '  if [[ $COMP_CWORD -le 1 ]]; then COMPREPLY=($(compgen -W "$words" -- "$word")); return; fi',
    '  case "${COMP_WORDS[1]} $word" in',
  ]  # fmt: skip
  for command, flags in commands.items():
    for flag, choices in flags.items():
      if choices:
        values = shlex.quote(" ".join(choices))
        lines.append(f"    '{command} {flag}='*) _albert_jax_values {values}; return ;;")
  lines += ['    *=*) COMPREPLY=($(compgen -f -- "${word#*=}")); return ;;', "  esac", '  case "${COMP_WORDS[1]}" in']
  for command, flags in commands.items():
    listed = " ".join(flag if not flag.startswith("--config.") and flag != "--config" else f"{flag}=" for flag in flags)
    lines.append(f"    {command}) words={shlex.quote(listed)} ;;")
  lines += [
    "  esac",
    '  if [[ $word == -* || ${#words} -lt 40 && -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$word")); fi',
    '  if [[ ${#COMPREPLY[@]} -eq 0 ]]; then COMPREPLY=($(compgen -f -- "$word")); fi',
    "  [[ ${COMPREPLY[0]:-} == *= ]] && compopt -o nospace 2>/dev/null",
    "}",
    "complete -F _albert_jax albert-jax",
  ]
  return "\n".join(lines)


def zsh(commands: dict[str, dict[str, list[str]]]) -> str:
  """Returns the script for zsh, which runs the script for bash."""
  return "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n" + bash(commands)


def fish(commands: dict[str, dict[str, list[str]]]) -> str:
  """Returns the script for fish."""
  lines = ["complete -c albert-jax -e"]
  for command, flags in commands.items():
    lines.append(f"complete -c albert-jax -n __fish_use_subcommand -f -a {command} -d {shlex.quote(COMMANDS[command])}")
    seen = f"-n '__fish_seen_subcommand_from {command}'"
    for flag, choices in flags.items():
      values = f" -x -a {shlex.quote(' '.join(choices))}" if choices else ""
      if flag.startswith("--"):
        lines.append(f"complete -c albert-jax {seen} -l {flag[2:]}{values}")
      else:
        lines.append(f"complete -c albert-jax {seen} -f -a {flag}")
  return "\n".join(lines)
