"""The stories that nemotron-tiny learns from: short tales for children, made by code.

A story is an opening, one of `PLOTS` and an ending. A plot is a text with choices, `[one|another]`,
which may be nested, and slots, `{thing}`, which keep their value through the story; so characters
keep their name and pronoun, and what was lost is what is found. Two thirds of the names are rare or
made up, so that a name is learned as something to copy from the beginning; `held_out_names` are in
no story.

    story(Random(1))  # "Once upon a time, there was a happy girl named Ella. She lived ..."
"""

import re
import zlib
from random import Random


def listed(text):
    """Split "a|b" into its parts."""
    return text.split("|")


GIRLS = listed(
    "Mia|Lily|Anna|Rosa|Emma|Lucy|Ruby|Nora|Ella|Clara|"
    "Ivy|Molly|Sara|Daisy|Zoe|Hanna|Amy|Bella|Lena|Poppy"
)
BOYS = listed(
    "Tom|Ben|Max|Leo|Sam|Jack|Tim|Finn|Noah|Oscar|"
    "Peter|Hugo|Billy|Felix|Adam|Charlie|Toby|Luke|Danny|Milo"
)
OTHER_GIRLS = listed(
    "Abigail|Ada|Agnes|Amanda|Amelia|Andrea|Annika|Astrid|Audrey|Beatrice|Bianca|Brigitte|Carla|"
    "Carmen|Caroline|Cecilia|Chloe|Christina|Daniela|Diana|Dorothy|Edith|Eleanor|Elena|Elizabeth|"
    "Elsa|Emily|Esther|Eva|Fatima|Fiona|Flora|Florence|Freya|Gabriela|Gloria|Grace|Greta|Hannah|"
    "Harriet|Hazel|Heidi|Helen|Ingrid|Irene|Isabel|Isla|Jasmine|Jessica|Joan|Josephine|Joy|Judith|"
    "Julia|Karen|Katie|Kim|Laura|Leila|Lisa|Lola|Louise|Lydia|Mabel|Maria|Marina|Martha|Mary|"
    "Maya|Mei|Miriam|Nadia|Naomi|Natalie|Nina|Olga|Olivia|Paula|Penelope|Priya|Rachel|Rebecca|"
    "Sakura|Sally|Samira|Sandra|Silvia|Sofia|Susan|Tanya|Teresa|Tina|Una|Vera|Victoria|Violet|"
    "Wendy|Xenia|Yasmin|Yuki"
)
OTHER_BOYS = listed(
    "Aaron|Abdul|Ahmed|Albert|Alex|Andrew|Anton|Archie|Arthur|Boris|Bruno|Carl|Carlos|Chen|"
    "Christopher|Daniel|David|Dennis|Diego|Dmitri|Edward|Eli|Emil|Eric|Ethan|Fabian|Fred|Gabriel|"
    "George|Gustav|Hans|Harry|Hassan|Henry|Ibrahim|Igor|Isaac|Ivan|Jacob|Jamal|James|Jim|Joe|"
    "Johan|Jonas|Joseph|Juan|Karl|Kevin|Klaus|Lars|Liam|Lucas|Magnus|Marco|Mark|Martin|Mateo|"
    "Matthew|Michael|Mohamed|Nathan|Ned|Nico|Nils|Oliver|Otto|Pablo|Patrick|Paul|Pedro|Pierre|"
    "Rafael|Raj|Richard|Robert|Robin|Rolf|Rudi|Samuel|Sebastian|Sergei|Simon|Stefan|Steven|Sven|"
    "Theo|Thomas|Tony|Umar|Victor|Viktor|Walter|Wei|Yusuf|Zack"
)
# In no story: to measure whether a new name is copied.
NEW_GIRLS = listed(
    "Hilda|Jane|Alice|Sarah|Charlotte|Ursula|Matilda|Zara|Gwendolyn|Mona|Keiko|Aisha|Ottilie|"
    "Tabitha|Vivian|Rosalind|Nell|Inez|Bridget|Saoirse"
)
NEW_BOYS = listed(
    "Omar|John|William|Bob|Peregrine|Ravi|Kenji|Bartholomew|Dave|Ludwig|Quentin|Tariq|Ulrich|"
    "Vincent|Wolfgang|Xavier|Zane|Gordon|Nigel|Ignatius"
)
NEW_NAMES = dict.fromkeys(NEW_GIRLS, True) | dict.fromkeys(NEW_BOYS, False)

ANIMALS = listed(
    "rabbit|fox|mouse|bear|duck|squirrel|frog|hedgehog|kitten|puppy|goat|turtle|cat|dog|pig|dragon"
)
CHILD_HOMES = listed(
    "a small village|a little house by the sea|a town near the mountains|a house on a hill|"
    "a farmhouse near the woods|a red house by the river"
)
ANIMAL_HOMES = listed(
    "a big green forest|a warm hole under a tree|a quiet meadow|a garden full of flowers|"
    "the woods near a lake|a little den on a hill"
)

OPENINGS = """
Once upon a time, there was {hero} named {N}. {He} lived in {home} with {his} {parent}.
Once upon a time, in {home}, there lived {hero} named {N}.
Once upon a time, {hero} named {N} lived in {home}.
Once upon a time there was {hero} named {N}. {He} lived in {home}.
Once upon a time there was {hero}. {His} name was {N}, and {he} lived in {home}.
Once there was {hero} named {N} who lived in {home}.
Long ago, in {home}, there lived {hero} named {N}.
There was once {hero} whose name was {N}. {He} lived in {home}.
{N} was {hero} who lived in {home}.
In {home} there lived {hero} named {N}. Everybody liked {N}.
""".strip().splitlines()

# Each plot: {slot: values}, and the text; "a, b" are slots whose values belong together.
PLOTS = {
    "lost": (
        {
            "thing": listed(
                "red ball|blue kite|little drum|yellow hat|silver bell|wooden boat|toy car|"
                "golden key|soft blanket|green scarf"
            ),
            "place": listed("park|forest|garden|meadow"),
            "spot, at": [
                "under a big bush|by the big bush",
                "behind a tall tree|near the tall tree",
                "next to the pond|down by the pond",
                "between two stones|by the old stones",
                "in the long grass|in the long grass",
            ],
            "helper": listed("bird|brown owl|butterfly|cow|bee|snail"),
        },
        """{N} had a {thing} that {he} loved very much. [{He} took it with {him} everywhere.|It
        was {his} favorite thing in the world.|{His} grandmother had given it to {him}.] One
        [day|morning|sunny day], {N} went to play in the {place}. [{He} ran and jumped all
        day.|{He} played for a long time.] But when {he} wanted to go home, the {thing} was gone!
        "Oh no! Where is my {thing}?" [cried|said] {N}. {He} looked here and there, but {he} could
        not find it. {N} was [very sad|so sad that {he} began to cry]. Then {friend} came by.
        ["What is wrong?" asked {F}. "I lost my {thing}," said {N}.|"Why are you sad, {N}?" asked
        {F}. "My {thing} is gone," said {N}.] "[Do not worry|Do not cry]. I will help you look for
        it," said {F}. [The two friends|{N} and {F}] looked [everywhere|all over the {place}].
        They asked a {helper}, "Have you seen a {thing}?" The {helper} said, "Yes! I saw it {at}."
        They ran there as fast as they could. And there it was, {spot}! {N} was so happy that {he}
        [hugged {F}|jumped up and down|laughed out loud]. "Thank you, {F}!" said {N}. [From that
        day on, {N} always took good care of the {thing}.|{N} took the {thing} home and never lost
        it again.|{N} learned that a good friend helps you when you are sad.]""",
    ),
    "stuck": (
        {
            "small, trap, tool, use": [
                "kitten|up in a tall tree|ladder|put the ladder against the tree and climbed up",
                "baby bunny|in a deep hole|rope|let the rope down into the hole and pulled",
                "small lamb|in the mud|long branch|put the branch on the mud and pulled",
                "baby squirrel|under a big log|strong stick|"
                "pushed the stick under the log and lifted it",
                "little puppy|behind an old fence|shovel|dug a little tunnel under the fence",
                "little bird|under a heavy box|thick branch|"
                "pushed the branch under the box and lifted it",
            ],
        },
        """One [day|morning|afternoon], {N} was walking [near the river|along the road|in the
        woods]. Suddenly {he} heard a [small|tiny|quiet] voice. "Help! Help!" said the voice. {N}
        looked around and saw a {small}. It was stuck {trap}! "[Do not be afraid|Do not worry], I
        will help you," said {N}. {He} tried to reach the {small}, but {he} could not do it alone.
        So {N} ran to {friend}. "{F}, come quickly! A {small} is stuck {trap}," said {N}. {F} [had
        an idea|thought for a moment]. "We need a {tool}," said {F}. They [found|brought] a {tool}
        and [ran|hurried] back. {N} and {F} {use}. [It was hard work, but they did not give up.|It
        took a long time, but they did not stop.] At last the {small} was free! "Thank you! You
        are so kind," said the {small}. [{N} smiled.|{N} was very proud.] [Since that day, {N},
        {F} and the {small} have been the best of friends.|{N} learned that together friends can
        do big things.|{N} and {F} walked home with happy hearts, because they had helped
        someone.]""",
    ),
    "share": (
        {
            "food": listed("apples|cookies|pears|buns|plums|carrots|pancakes|oranges"),
            "other": listed("nuts|berries|cherries|grapes|peaches"),
        },
        """One day, {his} {parent} gave {N} a [basket|bag|plate] full of {food}. "[They are for
        you|These are all for you]," {parent_said}. {N} was [very happy|so glad]. {He} sat down
        under a tree and began to eat. Soon {friend} came along. "Those {food} look so good," said
        {F}. "[I am very hungry|I have had nothing to eat today]. May I have one?" [But {N} wanted
        to keep them all.|But {N} did not want to share.] "No, they are mine!" said {N}. {F} was
        sad and went away. {N} ate and ate until {his} [tummy|belly] hurt. [Now {he} was all
        alone, and it was no fun.|Now {he} felt bad, and there was nobody to play with.] "[I was
        not kind|That was not nice of me]," thought {N}. So {he} took the rest of the {food} and
        went to look for {F}. {F} was sitting by the [river|road|pond]. "I am sorry, {F}," said
        {N}. "Please have some of my {food}." {F} smiled and said, "Thank you! I forgive you."
        They ate the {food} together and [laughed|told each other stories|talked all day]. The
        next day, {F} found some {other} and gave half of them to {N}. [{N} learned that it is
        better to share.|{N} learned that sharing makes everyone happy.|From that day on, {N}
        always shared with {his} friends.]""",
    ),
    "fear": (
        {
            "sound, it, doing": [
                "Hoo, hoo|little owl|singing to the moon",
                "Tap, tap|small branch|knocking on the window in the wind",
                "Scratch, scratch|tiny mouse|looking for some cheese",
                "Drip, drop|wet leaf|dripping after the rain",
                "Chirp, chirp|green cricket|playing its song",
                "Meow, meow|gray cat|asking to come in",
            ],
        },
        """{N} was [not afraid of many things, but {he} was afraid of the dark|afraid of the
        dark]. [Every night|When the sun went down], {he} [hid under the blanket|pulled the
        blanket over {his} head]. One night, {N} heard a strange sound. "{sound}!" it went. {N}
        [began to shake|could not sleep|sat up in bed]. "{Parent}! There is a monster outside!"
        {he} cried. {His} {parent} came in with a [candle|lamp|light]. "Let us go and see what it
        is," {parent_said}. "[I will hold your hand|I am right here with you]." {N} was scared,
        but {he} was brave and [got up|went along]. They walked slowly to the door. "{sound}!"
        went the sound again. {N} opened the door and held up the light. There was no monster at
        all! It was only a {it} {doing}. {N} began to laugh. "[It is just a {it}|It was only a
        {it}]," {he} said, "and I thought it was a monster!" {His} {parent} laughed, too. "You
        were very brave," {parent_said}. {N} went back to bed and [slept well|slept until the
        morning]. [From that night on, {N} was not afraid of the dark any more.|{N} learned that
        many things are not scary when you look at them.|{N} learned that being brave means to
        try, even when you are afraid.]""",
    ),
    "gift": (
        {
            "gift, made, bad, fix": [
                "cake|baked a cake|The cake was burned and black|watched the oven",
                "picture|painted a picture|The paint ran all over the paper|used less water",
                "necklace|made a necklace|The string broke and the beads fell down|"
                "took a stronger string",
                "pie|made a pie|The pie was much too salty|put sugar in the bowl",
                "basket|made a basket|The basket fell apart|tied the straw well",
                "candle|made a candle|The candle broke in two|let the wax get cold",
            ],
            "elder, she": [
                "grandmother|she",
                "grandfather|he",
                "aunt|she",
                "uncle|he",
            ],
        },
        """{N} loved {his} {elder} very much. [Tomorrow was the birthday of {his} {elder}|Soon it
        was {his} {elder}'s birthday], and {N} wanted to [give {elder_him} something nice|make a
        gift]. But {he} had no money. "[I know|I have an idea]! I will make a {gift} all by
        myself," said {N}. {He} worked [all morning|for a long time] and {made}. But something
        went wrong. {bad}. {N} was [sad|very sad] and wanted to give up. Then {friend} came to
        visit. "[Do not be sad|Everyone makes mistakes]," said {F}. "Let us try again. I will help
        you." So they tried again, and this time {N} {fix}. [Now the {gift} was perfect!|Now it
        was a beautiful {gift}!] The next day, {N} gave the {gift} to {his} {elder}. "Happy
        birthday!" said {N}. {His} {elder} smiled a big smile. "This is the best {gift} in the
        world," {she} said, "because you made it with love." [{N} was very happy that {he} had not
        given up.|{N} learned that it is good to try again.|{N} felt warm and happy inside.]""",
    ),
    "build": (
        {
            "house, weak, strong": [
                "tree house|thin sticks|thick boards",
                "little house|leaves|stones",
                "hut|straw|wood",
                "castle|sand|rocks",
                "bridge|paper|strong planks",
                "boat|paper|wood",
            ],
        },
        """{N} and {friend} wanted to build a {house}. "[Let us make it quickly|I want to be done
        soon]," said {N}, "then we can play." "[It is better to take our time|We should build it
        well]," said {F}. But {N} did not listen. {He} took some {weak} and built a {house} [in
        one hour|before lunch]. "Look, I am done!" said {N}. That night, [a strong wind came|there
        was a big storm]. In the morning, the {house} was broken. [There was nothing left but
        {weak}.|The {weak} were all over the ground.] {N} was very sad. "[You were right, {F}|I
        should have listened to you]," said {N}. "[Will you help me build a new one|Can we try it
        again]?" "Of course," said {F}. This time they used {strong}. They worked [for three
        days|all week], and they did not hurry. {N} carried the {strong}, and {F} put them
        together. At last the new {house} was ready. [The wind came|The storm came] again, but the
        {house} [stood still|did not break]. "We did it!" said {N} [happily|with a big smile].
        [{N} learned that good work takes time.|{N} learned to listen to {his} friends.|From then
        on, {N} never hurried when {he} was building something.]""",
    ),
    "truth": (
        {
            "item": listed("blue vase|big mirror|white cup|clay pot|glass lamp|pretty plate"),
            "play": listed("with a ball|tag with {F}|with a kite|pirates with {F}"),
            "hide": listed("under the bed|behind the door|in a dark corner|in a box"),
        },
        """One rainy day, {N} was playing {play} in the house. "[Please be careful|Do not run in
        the house]," {parent_said}. But {N} [forgot|did not think about it]. {He} ran too fast and
        bumped into the table. Crash! The {item} fell down and broke. {N} was [scared|afraid].
        "[What will happen now|What should I do]?" {he} thought. {He} picked up the pieces and hid
        them {hide}. At dinner, {his} {parent} asked, "Where is the {item}?" "[I do not know|Maybe
        a cat took it]," said {N}. But it was a lie, and {N} felt [bad|terrible]. [{He} could not
        eat.|That night {he} could not sleep.] {N} told {friend} about it. "[You should tell the
        truth|It is best to tell the truth]," said {F}. So {N} went to {his} {parent}. "I broke
        the {item}," said {N} with tears in {his} eyes. "I am so sorry." {His} {parent} gave {him}
        a hug. "[I am not angry|It is only a thing]," {parent_said}. "I am glad that you told me
        the truth." Then they [fixed the {item} with glue|cleaned up the pieces] together. [{N}
        felt much better and never lied again.|{N} learned that it is always better to tell the
        truth.|{N} was happy again, and {he} never ran in the house any more.]""",
    ),
    "race": (
        {
            "goal": listed("the old bridge|the big oak tree|the top of the hill|the mill"),
            "prize": listed("a golden cup|a big cake|a blue ribbon|a shiny medal"),
            "trip": listed("a stone|a root|a log"),
        },
        """{N} could run very fast. "[I am the fastest of all|Nobody is as fast as me]!" {he}
        always said. One day there was a big race to {goal}. The prize was {prize}. {N} and
        {friend} wanted to run, too. "One, two, three, go!" {N} ran [like the wind|as fast as {he}
        could], and {F} was far behind. [{N} looked back and laughed.|"You are too slow!" shouted
        {N}.] But {he} did not look where {he} was going, and {he} fell over {trip}. "Ouch! My
        [foot|leg] hurts!" cried {N}. Soon {F} came along. {F} could have won the race. But {F}
        stopped and asked, "Are you [hurt|all right], {N}?" "[I cannot walk|I cannot stand up],"
        said {N}. "[Then I will help you|Hold on to me]," said {F}. {F} helped {N} up, and they
        walked to {goal} together. [They were the last ones, but everyone cheered.|All the others
        were there before them, but nobody laughed.] "[Why did you help me? I was not nice to
        you|You are so kind, and I was so proud]," said {N}. "Because you are my friend," said
        {F}. The winner saw it and gave the prize to {F}. [{N} learned that a kind heart is better
        than fast legs.|{N} never laughed at a slow friend again.|{N} learned that a good friend
        is better than {prize}.]""",
    ),
    "way": (
        {
            "want": listed("berries|mushrooms|flowers|nuts|pine cones"),
            "guide, how, lead": [
                "a kind deer|soft voice|walked ahead through the trees",
                "a wise owl|deep voice|flew from tree to tree",
                "a blue bird|sweet voice|flew slowly over the path",
                "a firefly|tiny voice|lit up the dark path",
                "an old turtle|slow voice|went step by step along the river",
            ],
        },
        """One day, {N} went into the [woods|deep forest] to look for {want}. "[Stay on the
        path|Do not go too far]," {parent_said}. But {N} saw [more|so many] {want} behind the
        trees. {He} went on and on, and soon {he} did not know where {he} was. [It was getting
        dark.|The sun went down.] "I am lost! How will I get home?" said {N}, and {he} sat down on
        a [stone|log] and cried. Then {guide} came by. "[Why are you crying|What is the matter],
        little one?" it asked in a {how}. "I cannot find my way home," said {N}. "[I know the
        way|I can show you the way]. Just follow me." So {N} dried {his} tears and stood up.
        {The_guide} {lead}, and {N} followed. [They walked for a long time.|{N} was tired, but
        {he} did not stop.] At last {N} saw a light. It was {his} home! {His} {parent} was
        [waiting at the door|standing outside]. "There you are! I was so worried," {parent_said},
        and hugged {him}. "{Guide} helped me," said {N}. They gave {some} {want} to their new
        friend to say thank you. [From that day on, {N} always stayed on the path.|{N} learned to
        listen to {his} {parent}.|{N} never went so far alone again.]""",
    ),
    "seed": (
        {
            "seed, plant, fruit": [
                "tiny seed|sunflower|yellow flowers",
                "brown seed|apple tree|sweet apples",
                "black seed|pumpkin plant|big pumpkins",
                "round seed|cherry tree|red cherries",
                "small bean|bean plant|green beans",
                "white seed|melon plant|juicy melons",
            ],
            "giver": listed("an old man|an old woman|a farmer|a kind gardener"),
        },
        """One spring day, {giver} gave {N} a {seed}. "[Take good care of it|Give it water every
        day], and something wonderful will happen," said {the_giver}. {N} [dug a hole in the
        garden|found a sunny place] and put the {seed} into the ground. Every morning, {he} gave
        it water. But nothing happened. {Friend} laughed. "[Nothing will ever grow there|You are
        wasting your time]," said {F}. [But {N} did not give up.|But {N} just smiled and waited.]
        "[I must be patient|Good things take time]," {he} said. {N} gave it water in the morning
        and sang to it in the evening. Then, one day, {he} saw a little green leaf! "Look! It is
        growing!" {he} [shouted|cried]. The plant grew bigger and bigger. By summer it was a tall
        {plant} with many {fruit}. {F} came to see it. "[I was wrong|I am sorry that I laughed],"
        said {F}. "It is beautiful." {N} was not angry. {He} gave {F} some of the {fruit}. [They
        sat under the sun and were happy.|"Next year we can plant one together," said {N}.] [{N}
        learned that good things come to those who wait.|{N} was proud, because {he} had been
        patient.|{N} learned never to give up.]""",
    ),
    "new": (
        {
            "game": listed("hide and seek|tag|catch|marbles"),
            "good": listed(
                "climb very high|sing very well|tell funny stories|swim very fast|"
                "draw pretty pictures"
            ),
        },
        """One day, [someone new came to live next door|a new neighbor came]. {Fhis} name was {F}.
        {F} was very shy and did not speak to anyone. [The others played {game}, but {F} sat alone
        under a tree.|When the others played {game}, {F} only looked on.] {N} saw this and [felt
        sorry for {F}|wanted to help]. {He} went over and said, "Hello! My name is {N}. What is
        your name?" "I am {F}," said {F} in a very quiet voice. "Do you want to play {game} with
        us?" asked {N}. {F} looked at the ground. "[I am not good at it|I do not know how to
        play]," said {F}. "[That does not matter|That is all right]. I will show you how," said
        {N}. So {N} showed {F} how to play {game}. [At first it was hard, but soon {F} began to
        laugh.|Soon {F} was not shy any more.] They played until the sun went down. Then {N} found
        out that {F} could {good}. "[Wow|Oh]! Can you teach me that?" asked {N}. "[Of course|Yes,
        I will]," said {F}, "because you are my first friend here." [{N} was glad that {he} had
        said hello.|{N} learned that a kind word can make a new friend.|From that day on, {N} and
        {F} played together every day.]""",
    ),
    "found": (
        {
            "thing": listed("ring|purse|gold coin|pearl necklace|silver watch|letter"),
            "owner, O": [
                "an old woman|The old woman",
                "an old man|The old man",
                "the baker|The baker",
                "the teacher|The teacher",
                "a poor farmer|The farmer",
                "a sad girl|The girl",
            ],
            "reward": listed(
                "warm loaf of bread|jar of honey|bag of sweets|little puppet|pretty book"
            ),
        },
        """One [day|morning], {N} found a {thing} on the road. [It was shining in the sun.|It was
        lying in the dust.] "What a beautiful {thing}! May I keep it?" thought {N}. {He} showed it
        to {friend}. "[Keep it! Nobody will know|You found it, so it is yours]," said {F}. But {N}
        shook {his} head. "[It belongs to someone|Someone lost it and is sad now]," said {N}. "We
        must find out who it is." So {N} and {F} went from door to door and asked, "Did you lose a
        {thing}?" "No," said [one|a man] after another. At last they met {owner} who was
        [crying|looking for something on the ground]. "[What is wrong|What are you looking for]?"
        asked {N}. "I have lost my {thing}," said {the_owner}. "Is it this one?" asked {N}, and
        held out the {thing}. "Yes! Oh, thank you! You are [so kind|an honest child|very good]!"
        {O} was so happy and gave them a {reward}. On the way home, {F} said, "You were right,
        {N}. [It feels good to be honest|It was the right thing to do]." [{N} smiled and shared
        the {reward} with {F}.|{N} learned that being honest is the best gift.|{N} was happier
        than with all the gold in the world.]""",
    ),
}
CHOICE = re.compile(r"\[([^\[\]]*)\]")


def story(random):
    """One story, without </s>; `random` decides everything."""
    slots = characters(random)
    choices, text = PLOTS[random.choice(list(PLOTS))]
    for names, values in choices.items():
        slots |= zip(names.split(", "), random.choice(values).split("|"), strict=True)
    for name in ("giver", "owner", "guide"):
        if name in slots:
            slots[f"the_{name}"] = re.sub("^an? (poor )?", "the ", slots[name])
            slots[f"The_{name}"] = slots[f"the_{name}"].capitalize()
    slots["Guide"] = slots.get("guide", "").capitalize()
    slots["some"] = random.choice(["some", "a few"])
    slots["elder_him"] = "her" if slots.get("she") == "she" else "him"
    text = f"{random.choice(OPENINGS)} {' '.join(text.split())}"
    while "[" in text:
        text = CHOICE.sub(lambda match: random.choice(match[1].split("|")), text)
    while "{" in text:
        text = text.format_map(slots)
    return re.sub(" +", " ", text)


def characters(random):
    """The slots that every plot has: {N} the hero, {F} a friend, {parent}, and their pronouns."""
    girl, friend_is_girl = random.random() < 0.5, random.random() < 0.5
    hero = friend = some_name(random, girl)
    while friend == hero:
        friend = some_name(random, friend_is_girl)
    he, him, his = ("she", "her", "her") if girl else ("he", "him", "his")
    parent = random.choice(["mother", "father"])
    adjective = random.choice(["little", "young", "happy", "kind", "brave", "clever", "small"])
    if random.random() < 0.6:
        kinds = ("girl", "princess") if girl else ("boy", "prince")
        kind = kinds[random.random() < 0.1]
        home = random.choice(CHILD_HOMES)
        called = f"{his} friend {friend}"
    else:
        kind, other = random.sample(ANIMALS, 2)
        home = random.choice(ANIMAL_HOMES)
        called = f"{his} friend {friend} the {other}"
    return {
        "N": hero,
        "F": friend,
        "hero": f"a {adjective} {kind}",
        "friend": called,
        "Friend": called[0].upper() + called[1:],
        "home": home,
        "he": he,
        "him": him,
        "his": his,
        "He": he.capitalize(),
        "His": his.capitalize(),
        "Fhis": "Her" if friend_is_girl else "His",
        "parent": parent,
        "Parent": parent.capitalize(),
        "parent_said": f"said {his} {parent}",
    }


def some_name(random, girl):
    """A name: one of the 40 usual ones, one of the others, or one made up."""
    kind = random.random()
    if kind < 0.35:
        return random.choice(GIRLS if girl else BOYS)
    if kind < 0.6:
        return random.choice(OTHER_GIRLS if girl else OTHER_BOYS)
    while held_out(name := made_up(random)):
        pass
    return name


def made_up(random):
    """A name of two or three syllables that hardly anybody has: "Mirvo", "Tashelin"."""
    starts = listed("b|br|d|dr|f|fl|g|gr|h|j|k|kl|l|m|n|p|pr|qu|r|s|sh|st|t|th|tr|v|w|y|z|")
    vowels = listed("a|e|i|o|u|a|e|i|o|ai|ee|ia|oo|ou")
    ends = listed("|||||l|n|r|s|m|k|x|ck|nd|rt|ll|th|sh")
    count = random.choice((2, 2, 3))
    parts = [random.choice(choices) for _ in range(count) for choices in (starts, vowels)]
    return ("".join(parts) + random.choice(ends)).capitalize()


def held_out(name):
    """Whether a name is in no story: of the made-up ones one of ten, by a hash."""
    return name in NEW_NAMES or zlib.crc32(name.encode()) % 10 == 0


def held_out_names(count, seed):
    """Names that are in no story: the 40 real ones, then made-up ones. [(name, of a girl), ...]"""
    random, names = Random(seed), dict(NEW_NAMES)
    while len(names) < count:
        if held_out(name := made_up(random)):
            names.setdefault(name, random.random() < 0.5)
    return list(names.items())[:count]


def ordinary_words():
    """Every word that a story can write with a capital letter and that is no name."""
    texts = list(OPENINGS)
    for choices, plot in PLOTS.values():
        texts += [plot, *(value for values in choices.values() for value in values)]
    # What a slot writes at the start of a sentence.
    texts.append("He She His Her Mother Father An The")
    return set(re.findall("[A-Z][a-z]+", " ".join(texts)))


ORDINARY = ordinary_words()


def names_in(text):
    """The names in a text, each once, in order: the words that only a name can be."""
    return [w for w in dict.fromkeys(re.findall("[A-Z][a-z]+", text)) if w not in ORDINARY]


def main_character(text):
    """The first name in a text, or None."""
    return next(iter(names_in(text)), None)


def last_named(text):
    """The first name in the last sentence that has one, or None; in a story, its main character."""
    sentences = re.split(r'(?<=[.!?])"? ', text)
    return next(filter(None, map(main_character, reversed(sentences))), None)
