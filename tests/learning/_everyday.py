"""Everyday questions: to learn from, to choose settings by, and kept back; no subject in common."""

from __future__ import annotations

TRAINING = {
    "food": """
        How do I cook rice? What is yeast used for? How do I boil an egg? Why does bread go stale?
        How do I store potatoes? What makes a good soup? How is cheese made? Why do onions make people cry?
        How do I peel garlic quickly? What can I cook with lentils? How do I make pancakes? What is tofu?
        Why is salt added to pasta water? How do I keep herbs fresh? What goes well with fried fish?
        How do I know that a melon is ripe? What is the difference between jam and jelly? How do I roast nuts?
        Why does milk boil over? What should I eat for breakfast?
    """,
    "garden": """
        How do I grow tomatoes? What is compost? How often should I water roses? Why do leaves turn yellow?
        How do I get rid of weeds? When should I plant tulips? What does a greenhouse do?
        How do I prune an apple tree? Which vegetables grow in the shade? How do I plant a hedge?
        What is mulch good for? How do I mow a lawn? Why do plants need light?
        How do I keep slugs away from lettuce? What is a perennial? How do I grow mint?
    """,
    "clothes": """
        How do I remove a coffee stain? What is linen? How do I iron a shirt? Why does wool shrink?
        How do I sew on a button? What should I wear to a wedding? How do I fold a sweater?
        What is denim made of? How do I clean leather shoes? How do I choose a winter coat?
        Why do colors fade in the wash? What is silk?
    """,
    "home": """
        How do I clean windows? What is grout? How do I unclog a sink? Why does a door squeak?
        How do I paint a wall? What is the best way to hang a picture? How do I save water at home?
        What does a fuse do? How do I clean an oven? Why is my kitchen floor sticky? How do I assemble a shelf?
        What is insulation? How do I remove dust from curtains? How do I fix a wobbly table?
        What is a thermostat? How do I light a stove?
    """,
    "music": """
        How does a guitar make sound? What is jazz? How do I learn the piano? Why do singers warm up?
        What does a conductor do? How do I tune a violin? What is a chord? How is a drum made?
        What is the difference between an opera and a musical? How do I write a song? What is rhythm?
        Why does music make us happy?
    """,
    "weather": """
        Why does it rain? What is fog? How does lightning form? Why is the sky blue? What is a hurricane?
        How is snow made in the sky? What causes wind? How do I read a weather map? What is humidity?
        Why are there seasons? What is a rainbow? How do clouds stay up?
    """,
    "sport": """
        How do I start running? What are the rules of tennis? How do I learn to swim? Why do muscles get sore?
        What is a marathon? How do I throw a frisbee? What is the offside rule in soccer?
        How do I stretch my legs? What is yoga? How do I get better at chess? What does a goalkeeper do?
        How do I choose a tennis racket?
    """,
}

VALIDATION = {
    "animals": """
        Why do cats purr? How do bees make honey? What do hedgehogs eat? How do I train a puppy?
        What is a marsupial? Why do birds fly south? How do fish breathe? What is the fastest animal?
        How do I feed a hamster? Why do dogs bark? How do spiders make webs? What is an amphibian?
        How do whales sleep? Why are flamingos pink? How do I build a bird house? What do owls hunt?
        How do ants find their way? Why do horses wear shoes? What is a parasite? How long do turtles live?
    """,
    "travel": """
        What should I pack for a weekend trip? How do I get a passport? Why do airplanes fly so high?
        How do I avoid jet lag? What is a visa? How do I read a train schedule? What is a hostel?
        How do I find a cheap flight? What should I see in Paris? How do I pitch a tent?
        Why do ears pop on a plane? What is the best way to carry money abroad? How do I plan a road trip?
        What is a time zone?
    """,
    "health": """
        How can I sleep better? What is a fever? How do I treat a small burn? Why do we yawn? What is a vaccine?
        How do I stop hiccups? What does the heart do? Why do we need vitamins?
        How do I brush my teeth properly? What is an allergy? How do I sit at a desk without back pain?
        Why do we dream? What is stress? How do glasses help people to see?
    """,
    "money": """
        What is a savings account? How do I make a budget? What is inflation? Why do people pay taxes?
        How does a credit card work? What is a loan? How do I save for a house? What does a bank do?
        Why do prices rise? What is an insurance? How do I pay off a debt? What is a stock?
    """,
    "school": """
        How do I study for an exam? What is an essay? How do I learn new words? Why do students get homework?
        What is a fraction? How do I write a summary? What does a librarian do? How do I remember dates?
        What is a metaphor? How do I give a speech? Why is reading important?
        How do I find the area of a circle?
    """,
    "computers": """
        What is a browser? How do I make a strong password? What does a router do? Why is my laptop slow?
        How do I take a screenshot? What is a virus on a computer? How do I back up my photos?
        What is a spreadsheet? How does a touch screen work? What is cloud storage?
        Why do phone batteries wear out? How do I write an email? What is a programming language?
        How do I clean a keyboard?
    """,
    "space": """
        What is a black hole? Why does the moon have phases? How far away is the sun? What is a comet?
        How do rockets work? Why is Mars red? What is a galaxy? How do astronauts eat? What is a satellite?
        Why do stars twinkle? What is gravity? How was the moon formed? What is an eclipse?
        Why is there no sound in space?
    """,
}

KEPT_BACK = {
    "cars": """
        How does a car engine work? What is an oil change? Why do cars have gears? How do I change a flat tire?
        What does a catalytic converter do? How do brakes stop a car? What is an electric car? How do I park on a hill?
        Why does a battery go flat in winter? What is cruise control? How often should I check the tires?
        What does the clutch do? How do seat belts protect people? Why do cars need coolant?
    """,
    "history": """
        What was the Silk Road? Why did the Roman Empire fall? What is a pyramid? How did people write before paper?
        What was the Renaissance? Who built the Great Wall of China? What is a castle? Why did people hunt whales?
        How did the printing press change the world? What was the Industrial Revolution? What is a museum?
        How do archaeologists find old cities? What was the Black Death? Why did sailors fear scurvy?
    """,
    "art": """
        What is a portrait? How do I draw a face? What is the color wheel? How is glass blown? What is a fresco?
        How do I mix green paint? Why do artists use perspective? What is pottery? How do I start with watercolors?
        What is a sculpture? What does a curator do? How do I frame a picture? What is origami?
        Why is the Mona Lisa famous?
    """,
    "geography": """
        What is a desert? How are mountains formed? What is an island? Why are there time zones? What is a delta?
        How do I read a compass? What is the equator? Why do volcanoes erupt? What is a glacier? How deep is the ocean?
        What is a peninsula? How do maps show height? Why do rivers bend? What is a rain forest?
    """,
    "work": """
        How do I write a job application? What is an interview? How do I ask for a raise? What does a manager do?
        What is a contract? How do I work well in a team? Why do workers join unions? What is overtime?
        How do I give feedback to a colleague? What does an accountant do? How do I prepare a meeting?
        What is a pension? What is an internship? How do I change my career?
    """,
    "physics": """
        What is friction? Why does ice float? How do magnets attract iron? What is electricity? How does a lens work?
        Why do we hear echoes? What is a vacuum? How does a lever help? What is energy? Why do metals feel cold?
        What is an atom? How does a pendulum keep time? What is pressure? Why is the sky dark at night?
        What is a transistor?
    """,
    "celebrations": """
        How do I plan a birthday party? What is a wedding ring for? Why do people send greeting cards?
        How do I wrap a gift? What is a toast at a dinner? Why are there fireworks at New Year? What is a holiday?
        How do I choose a present for a friend? How do I decorate a table? What is a carnival?
        Why do people blow out candles? What is a piñata? How do I write an invitation? What is a lantern?
        How do I thank a host?
    """,
}


def questions(subjects: dict[str, str]) -> list[str]:
    """The questions of all subjects by turns, so that the first ones are of different subjects."""
    lists = [[f"{each}?" for each in " ".join(text.split()).rstrip("?").split("? ")] for text in subjects.values()]
    longest = max(map(len, lists))
    return [own[place] for place in range(longest) for own in lists if place < len(own)]
