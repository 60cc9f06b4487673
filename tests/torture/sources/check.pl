use strict;
use warnings;
$| = 1;
srand(1);
my (%kept, @order);
for (my $round = 0; ; $round++) {
    for my $i (0 .. 29) {
        my $block = pack("N", int rand(1 << 31)) x (1 + int rand(2000)) . $round;
        $kept{"$round/$i"} = { block => $block, sum => unpack("%32C*", $block), name => "x" x $i };
        push @order, "$round/$i";
    }
    delete $kept{ shift @order } while @order > 1500;
    for my $name (@order) {
        my $entry = $kept{$name};
        if (unpack("%32C*", $entry->{block}) != $entry->{sum} || $name !~ m{/(\d+)$} || length $entry->{name} != $1) {
            print "bad: $name\n";
            exit 3;
        }
    }
    print "ok $round\n";
}
