package Program;

# The file that a handler names, and how it is started: by what its first line says, a script without such a line by
# bash, anything else by itself.
use strict;
use warnings;
use POSIX ();

use constant MESSAGE => 4096;    # bytes of it that are looked at

# Dies with why there is nothing to run. `$handler`: `path.word`; the program gets the word as its argument.
sub new {
    my ($class, $handler) = @_;
    my ($path, $word) = $handler =~ /\A(.*)\.(.*)\z/s or die "handler '$handler' is not like `handler.handler`\n";
    my ($file) = grep { -f } $path, "$path.sh";
    die "handler '$handler' needs the file $path or $path.sh, and the bundle has neither\n" if !defined $file;
    my @command = _command($file);
    _check(@command) if $command[0] =~ m{(?:\A|/)(?:ba|da)?sh\z};
    return bless { file => $file, command => [@command, $word] }, $class;
}

# Become the program: in a child, whose descriptors 0 to 4 will be `@ends`. Does not return.
sub become {
    my ($self, $environment, @ends) = @_;
    setpgrp 0, 0;
    POSIX::dup2(fileno $ends[$_], $_) for 0 .. $#ends;
    $SIG{$_} = 'DEFAULT' for qw(PIPE TERM INT CHLD);
    %ENV = %$environment;
    my @command = @{ $self->{command} };
    { no warnings 'exec'; exec { $command[0] } @command }
    syswrite STDERR, "$command[0] can't be run: $!\n";
    POSIX::_exit(126);
}

sub _command {
    my ($file) = @_;
    open(my $handle, '<:raw', $file) or die "$file can't be read: $!\n";
    read $handle, my $start, MESSAGE;
    if (my ($interpreter, $argument) = $start =~ /\A#![ \t]*([^ \t\n]+)[ \t]*([^\n]*?)[ \t\r]*\n/) {
        return ($interpreter, length $argument ? $argument : (), "./$file");
    }
    return "./$file" if -x $file && $start =~ /\A\x7fELF/;
    die "$file is no script that says in its first line what runs it (#!), nor may it be executed: chmod +x\n"
        if $file !~ /\.sh\z/;
    return (-x '/bin/bash' ? '/bin/bash' : '/bin/sh', "./$file");
}

# Dies with the shell's own words about a syntax error.
sub _check {
    my ($shell, @rest) = @_;
    open(my $null, '>', '/dev/null') or die "/dev/null: $!\n";
    pipe(my $reading, my $writing) or die "a pipe: $!\n";
    my $child = fork // die "a process: $!\n";
    if (!$child) {
        POSIX::dup2(fileno $null, 1);
        POSIX::dup2(fileno $writing, 2);
        { no warnings 'exec'; exec { $shell } $shell, '-n', $rest[-1] }
        POSIX::_exit(0);    # a program that is not there is found when it is called
    }
    close $writing;
    my $said = do { local $/; readline $reading };
    waitpid $child, 0;
    die $said if $?;
}

1;
